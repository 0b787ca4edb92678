// Tucker-2 convolution on CUDA: the registration.
#include "common/chain_call.cuh"
#include "tucker_conv2d/core.cuh"

namespace rdk::gpu {
namespace {

std::vector<Tensor> fwd(const Tensor& x, const Tensor& inner, const Tensor& core, const Tensor& outer,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, int64_t stride_h,
                        int64_t stride_w, int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t dilation_h,
                        int64_t dilation_w, int64_t activation, bool) {
  const char* op = "tucker_conv2d_fwd";
  const Tensor i = checked_factor(op, "inner", inner, x, {-1, x.size(1)});
  const Tensor c = checked_factor(op, "core", core, x, {-1, i.size(0), -1, -1});
  const Tensor o = checked_factor(op, "outer", outer, x, {-1, c.size(0)});
  ConvCall call(op, x, o.size(0), c.size(2), c.size(3), bias, residual, stride_h, stride_w, top, bottom, left, right,
                dilation_h, dilation_w, activation);
  return call.run<CoreProblem>([&]<class T>(CoreProblem<T>& p, Allocator& memory, const Device& device) {
    p.inner = data<T>(i), p.core = data<T>(c), p.outer = data<T>(o);
    p.inner_ranks = i.size(0), p.outer_ranks = c.size(0), p.kh = c.size(2), p.kw = c.size(3);
    tucker(p, tf32_allowed(), memory, device);
  });
}

}  // namespace
}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CUDA, m) { m.impl("tucker_conv2d_fwd", TORCH_BOX(&rdk::gpu::fwd)); }
