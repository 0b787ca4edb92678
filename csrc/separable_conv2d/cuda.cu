// Separable convolution on CUDA: the registration.
#include "common/chain_call.cuh"

namespace rdk::gpu {

extern template Chosen lines<BFloat16>(const LinesProblem<BFloat16>&, bool, Allocator&, const Device&);
extern template Chosen lines<Half>(const LinesProblem<Half>&, bool, Allocator&, const Device&);
extern template Chosen lines<float>(const LinesProblem<float>&, bool, Allocator&, const Device&);

namespace {

std::vector<Tensor> separable(const Tensor& x, const Tensor& vertical, const Tensor& horizontal,
                              const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                              int64_t stride_h, int64_t stride_w, int64_t top, int64_t bottom, int64_t left,
                              int64_t right, int64_t dilation_h, int64_t dilation_w, int64_t activation, bool) {
  const char* op = "separable_conv2d_fwd";
  const Tensor v = checked_factor(op, "vertical", vertical, x, {-1, x.size(1), -1});
  const Tensor h = checked_factor(op, "horizontal", horizontal, x, {-1, v.size(0), -1});
  ConvCall call(op, x, h.size(0), v.size(2), h.size(2), bias, residual, stride_h, stride_w, top, bottom, left, right,
                dilation_h, dilation_w, activation);
  return call.run<LinesProblem>([&]<class T>(LinesProblem<T>& p, Allocator& memory, const Device& device) {
    p.vertical = data<T>(v), p.horizontal = data<T>(h);
    p.ranks = v.size(0), p.kh = v.size(2), p.kw = h.size(2);
    lines(p, tf32_allowed(), memory, device);
  });
}

}  // namespace
}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CUDA, m) {
  m.impl("separable_conv2d_fwd", TORCH_BOX(&rdk::gpu::separable));
}
