// Hashed linear layer on the CPU: which kernel serves which shape, and the registration.
#include "hashed_linear/bank_grad.h"
#include "hashed_linear/checks.h"
#include "hashed_linear/few_rows.h"
#include "hashed_linear/many_rows.h"

namespace rdk {
namespace {

enum class Path : int64_t { none, few_rows, many_rows, bank_grad };
thread_local Path last_path = Path::none;

template <class T>
View<T> view(const Tensor& t, bool ones = false) {
  return {data<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1), ones};
}

template <class Pass, class T>
void many_rows(const ManyRows<T>& kernel) {
  last_path = Path::many_rows;
  parallel(kernel.tasks(), [&](int64_t first, int64_t last) { kernel.template run<Pass>(first, last); });
}

template <class Kernel>
void few_rows(const Kernel& kernel) {
  last_path = Path::few_rows;
  parallel(kernel.tasks(), [&](int64_t first, int64_t last) { kernel.run(first, last); });
}

Tensor fwd(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& bias, int64_t out_features, int64_t go,
           int64_t gi, int64_t seed, double scale, bool hashed_bias) {
  const char* op = "hashed_linear_fwd";
  const Map map = checked_forward(op, x, bank, bias, out_features, go, gi, seed);
  last_path = Path::none;
  const Tensor values = as_contiguous(bank);
  const std::optional<Tensor> added = bias ? std::optional(as_contiguous(*bias)) : std::nullopt;
  Tensor y = torch::stable::new_empty(x, {x.size(0), out_features});
  if (y.numel() == 0) return y;
  dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
    const View<T> rows = view<T>(x, hashed_bias);
    const Output<T> out{static_cast<T*>(y.mutable_data_ptr()), x.size(0), out_features, float(scale),
                        added ? data<T>(*added) : nullptr};
    if (rows.rows <= kFewRows) {
      few_rows(FewRows<T>{map, rows, data<T>(values), out});
    } else {
      many_rows<ForwardPass>(ManyRows<T>{map, rows, data<T>(values), out});
    }
  });
  return y;
}

Tensor bwd_x(const Tensor& dy, const Tensor& bank, int64_t in_features, int64_t go, int64_t gi, int64_t seed,
             double scale) {
  const char* op = "hashed_linear_bwd_x";
  const Map map = checked_map(op, dy, bank.numel(), in_features, go, gi, seed);
  check_like(op, "bank", bank, dy);
  last_path = Path::none;
  const Tensor values = as_contiguous(bank);
  Tensor dx = torch::stable::new_empty(dy, {dy.size(0), in_features});
  if (dx.numel() == 0) return dx;
  dispatch_dtype<BFloat16, Half>(op, dy, [&]<class T>(T) {
    const Output<T> out{static_cast<T*>(dx.mutable_data_ptr()), dy.size(0), in_features, float(scale), nullptr};
    if (dy.size(0) <= kFewGradRows) {
      few_rows(FewRowsInputGrad<T>{map, view<T>(dy), data<T>(values), out});
    } else {
      many_rows<InputGradPass>(ManyRows<T>{map, view<T>(dy), data<T>(values), out});
    }
  });
  return dx;
}

Tensor bwd_bank(const Tensor& dy, const Tensor& x, int64_t slots, int64_t go, int64_t gi, int64_t seed, double scale,
                bool hashed_bias) {
  const char* op = "hashed_linear_bwd_bank";
  const int64_t numel = slots * go * gi;
  const Map map = checked_map(op, x, numel, dy.size(1), go, gi, seed);
  check_like(op, "dy", dy, x);
  check_rows(op, dy, x);
  Tensor dbank = torch::stable::new_empty(x, {numel});
  dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
    BankGrad<T> kernel(map, view<T>(dy), view<T>(x, hashed_bias), float(scale),
                       static_cast<T*>(dbank.mutable_data_ptr()), numel);
    const Tensor partials = torch::stable::new_empty(x, {kernel.workspace()}, ScalarType::Float);
    last_path = Path::bank_grad;
    float* workspace = static_cast<float*>(partials.mutable_data_ptr());
    parallel(kernel.tasks(), [&](int64_t first, int64_t last) { kernel.run(first, last, workspace); });
  });
  return dbank;
}

// Which kernel the calling thread's last call took: for tests.
int64_t hashed_linear_path() { return int64_t(last_path); }

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) {
  m.impl("hashed_linear_fwd", TORCH_BOX(&rdk::fwd));
  m.impl("hashed_linear_bwd_x", TORCH_BOX(&rdk::bwd_x));
  m.impl("hashed_linear_bwd_bank", TORCH_BOX(&rdk::bwd_bank));
}
STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CompositeExplicitAutograd, m) {
  m.impl("hashed_linear_path", TORCH_BOX(&rdk::hashed_linear_path));
}
