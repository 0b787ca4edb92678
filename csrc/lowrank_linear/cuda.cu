// Low-rank linear layer on CUDA, the separable chain of 1 x 1 windows on a map one pixel wide: the registration.
#include "common/chain_call.cuh"

namespace rdk::gpu {

extern template Chosen lines<BFloat16>(const LinesProblem<BFloat16>&, bool, Allocator&, const Device&);
extern template Chosen lines<Half>(const LinesProblem<Half>&, bool, Allocator&, const Device&);
extern template Chosen lines<float>(const LinesProblem<float>&, bool, Allocator&, const Device&);

namespace {

std::vector<Tensor> linear(const Tensor& x, const Tensor& down, const Tensor& up, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& residual, int64_t activation, bool) {
  const char* op = "lowrank_linear_fwd";
  check_argument(op, "x", x, x, {x.dim() ? x.size(0) : 0, -1});
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, op, ": activation must be 0 to 3, got ", activation);
  const Tensor d = checked_factor(op, "down", down, x, {-1, x.size(1)});
  const Tensor u = checked_factor(op, "up", up, x, {-1, d.size(0)});
  const int64_t rows = x.size(0), out = u.size(0);
  const std::optional<Tensor> added = bias ? std::optional(checked_factor(op, "bias", *bias, x, {out})) : std::nullopt;
  if (residual) check_argument(op, "residual", *residual, x, {rows, out});
  Tensor y = torch::stable::new_empty(x, {rows, out});
  if (y.numel() == 0) return {y};
  Call call(x);
  TorchMemory memory(call);
  dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
    LinesProblem<T> p{};
    p.x = {{data<T>(x), 0, x.stride(1), x.stride(0), 0}, 1, x.size(1), rows, 1};
    p.y = {{static_cast<T*>(y.mutable_data_ptr()), 0, 1, out, 0}, 1, out, rows, 1};
    p.vertical = data<T>(d), p.horizontal = data<T>(u);
    p.ranks = d.size(0), p.kh = p.kw = 1;
    if (residual) p.residual = {data<T>(*residual), 0, residual->stride(1), residual->stride(0), 0};
    if (added) p.bias = data<T>(*added);
    p.activation = Activation(activation), p.geometry = {1, 1, 0, 0, 1, 1};
    lines(p, tf32_allowed(), memory, {shared_limit(call.device()), call.stream()});
  });
  return {y};
}

}  // namespace
}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CUDA, m) { m.impl("lowrank_linear_fwd", TORCH_BOX(&rdk::gpu::linear)); }
