// CP convolution on CUDA: the registration.
#include "common/chain_call.cuh"
#include "cp_conv2d/depthwise.cuh"

namespace rdk::gpu {
namespace {

std::vector<Tensor> fwd(const Tensor& x, const Tensor& inner, const Tensor& vertical, const Tensor& horizontal,
                        const Tensor& outer, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        int64_t stride_h, int64_t stride_w, int64_t top, int64_t bottom, int64_t left, int64_t right,
                        int64_t dilation_h, int64_t dilation_w, int64_t activation, bool) {
  const char* op = "cp_conv2d_fwd";
  const Tensor i = checked_factor(op, "inner", inner, x, {-1, x.size(1)});
  const Tensor v = checked_factor(op, "vertical", vertical, x, {i.size(0), -1});
  const Tensor h = checked_factor(op, "horizontal", horizontal, x, {i.size(0), -1});
  const Tensor o = checked_factor(op, "outer", outer, x, {-1, i.size(0)});
  ConvCall call(op, x, o.size(0), v.size(1), h.size(1), bias, residual, stride_h, stride_w, top, bottom, left, right,
                dilation_h, dilation_w, activation);
  return call.run<DepthwiseProblem>([&]<class T>(DepthwiseProblem<T>& p, Allocator& memory, const Device& device) {
    p.inner = data<T>(i), p.vertical = data<T>(v), p.horizontal = data<T>(h), p.outer = data<T>(o);
    p.ranks = i.size(0), p.kh = v.size(1), p.kw = h.size(1);
    cp(p, tf32_allowed(), memory, device);
  });
}

}  // namespace
}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CUDA, m) { m.impl("cp_conv2d_fwd", TORCH_BOX(&rdk::gpu::fwd)); }
