// Low-rank linear layer on the CPU: which way serves which number of rows, and the registration.
#include "common/conv_tensor.h"
#include "lowrank_linear/fused.h"

namespace rdk {
namespace {

void check(const Tensor& y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& residual, const std::optional<Tensor>& kept, int64_t ranks,
           int64_t activation) {
  const char* op = "lowrank_linear_run";
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(0) == y.size(0) && y.is_contiguous(), op,
                  ": x and y must be matrices of as many rows, y contiguous");
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), op, ": y must have x's dtype");
  const int64_t floats = ceil_to(ranks, kVec) * x.size(1) + ceil_to(y.size(1), kVec) * ranks;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Float && packed.is_contiguous() && packed.numel() == floats, op,
                  ": packed must hold ", floats, " float32 values");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == x.scalar_type() && bias->numel() == y.size(1)), op,
                  ": bias must have ", y.size(1), " values of x's dtype");
  STD_TORCH_CHECK(!residual || (residual->scalar_type() == x.scalar_type() && residual->is_contiguous() &&
                                residual->numel() == y.numel()),
                  op, ": residual must be contiguous, of y's shape and x's dtype");
  STD_TORCH_CHECK(!kept || (kept->scalar_type() == ScalarType::Float && kept->is_contiguous() &&
                            kept->numel() == x.size(0) * ranks),
                  op, ": the kept rank rows must be contiguous float32");
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, op, ": activation must be 0 to 3, got ", activation);
}

template <class T>
void few_rows(const LowRank<T>& kernel) {
  float* const inside = Scratch::floats(1, size_t(kernel.rows * kernel.rank_row()));
  float* const wide = kernel.direct() ? nullptr : Scratch::floats(2, size_t(kernel.rows * kernel.wide_row()));
  const Segment a = kernel.whole(wide);
  Phases phases(kernel.rank_tasks(), kernel.output_tasks());
  parallel(torch::stable::get_num_threads(), [&](int64_t, int64_t) {
    phases.work([&](int64_t i) { kernel.run_ranks(i, a, inside); }, [&](int64_t i) { kernel.run_outputs(i, inside); });
  });
  kernel.keep(0, kernel.rows, inside);
}

template <class T>
void many_rows(const LowRank<T>& kernel) {
  const int64_t blocks = kernel.blocks(torch::stable::get_num_threads());
  parallel(blocks, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernel.run_block(i, blocks);
  });
}

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& kept, int64_t ranks, int64_t activation) {
  check(y, x, packed, bias, residual, kept, ranks, activation);
  if (y.numel() == 0) return;
  dispatch_dtype<BFloat16, Half>("lowrank_linear_run", x, [&]<class T>(T) {
    const Tensor added = bias ? as_contiguous(*bias) : x;
    const std::vector<float> padded = padded_bias<T>(bias ? data<T>(added) : nullptr, y.size(1));
    const int64_t rows = x.size(0), outputs = y.size(1);
    const Image<T> line{static_cast<T*>(y.mutable_data_ptr()), 1, outputs, 1, rows, 0, 1, 0, outputs};
    const Output<T> out{line, padded.data(), residual ? data<T>(*residual) : nullptr, Activation(activation)};
    const LowRank<T> kernel{data<T>(x),
                            rows,
                            x.size(1),
                            x.stride(0),
                            x.stride(1),
                            out,
                            ranks,
                            data<float>(packed),
                            kept ? static_cast<float*>(kept->mutable_data_ptr()) : nullptr};
    rows <= kFewRankRows ? few_rows(kernel) : many_rows(kernel);
  });
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("lowrank_linear_run", TORCH_BOX(&rdk::run)); }
