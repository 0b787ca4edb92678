// Palette linear layer on the CPU: which way serves which number of rows, and the registration.
#include <functional>
#include <optional>

#include "common/tensor.h"
#include "palette_linear/passes.h"

namespace rdk {
namespace {

constexpr int64_t kFewWeights = 1 << 15;  // a thread's share of one row at least: less is not worth waking it

float* written(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

void check(const char* op, const char* name, const Tensor& t, bool right) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && right, op, ": ", name, " must be float32 of the right shape");
}

Packed packed(const char* op, const Tensor& indices, int64_t out, int64_t in, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxBits && in > 0 && out > 0, op, ": bits must be 1 to 8, no size 0");
  const Packed found{data<uint8_t>(indices), out, in, int(bits)};
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Byte && indices.is_contiguous() &&
                      indices.numel() == strips_of(out) * found.strip_bytes(),
                  op, ": indices must be contiguous uint8 of ", strips_of(out) * found.strip_bytes(), " bytes");
  return found;
}

void tasks(int64_t count, int64_t least, const std::function<void(int64_t)>& fn) {
  torch::stable::parallel_for(0, count, least, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) fn(i);
  });
}

// result = rows W^T + bias, or where `turned` rows W
void run(Tensor result, const Tensor& rows, const Tensor& codebook, const Tensor& indices,
         const std::optional<Tensor>& bias, int64_t bits, bool turned) {
  const char* op = "palette_linear_run";
  check(op, "rows", rows, rows.dim() == 2 && (rows.size(1) <= 1 || rows.numel() == 0 || rows.stride(1) == 1));
  check(op, "result", result, result.dim() == 2 && result.is_contiguous() && result.size(0) == rows.size(0));
  const int64_t out = turned ? rows.size(1) : result.size(1), in = turned ? result.size(1) : rows.size(1);
  const Packed own = packed(op, indices, out, in, bits);
  check(op, "codebook", codebook, codebook.is_contiguous() && codebook.numel() == int64_t(1) << bits);
  if (bias) check(op, "bias", *bias, bias->is_contiguous() && bias->numel() == result.size(1));
  if (result.numel() == 0) return;
  const Weight w{Codebook(data<float>(codebook), int(bits)), own, Decoder::of(int(bits))};
  const Result to{written(result), rows.size(0), result.size(1), bias ? data<float>(*bias) : nullptr};
  const Rows from{data<float>(rows), rows.stride(0)};
  const Forward forward{from, w, to};
  if (turned) {
    tasks(to.tasks(), 1, [&](int64_t i) { InputGrad{from, w, to}.run(i); });
  } else if (to.rows == 1) {
    tasks(strips_of(out), std::max<int64_t>(1, kFewWeights / (kVec * in)), [&](int64_t s) { forward.run_strip(s); });
  } else {
    tasks(to.tasks(), 1, [&](int64_t i) { forward.run(i); });
  }
}

// sums[k] = sum of (dy^T x)[o, i] over the weights of index k; `xt` is x as [in, rows].
void sum(Tensor sums, const Tensor& dy, const Tensor& xt, const Tensor& indices, int64_t bits) {
  const char* op = "palette_linear_sum";
  check(op, "dy", dy, dy.dim() == 2);
  check(op, "xt", xt, xt.dim() == 2 && xt.is_contiguous() && xt.size(1) == dy.size(0));
  const Packed own = packed(op, indices, dy.size(1), xt.size(0), bits);
  const int64_t entries = int64_t(1) << bits;
  check(op, "sums", sums, sums.is_contiguous() && sums.numel() == entries);
  const Weight w{Codebook(int(bits)), own, Decoder::of(int(bits))};
  const Matrix grad{data<float>(dy), 1, dy.size(0), dy.size(1), 0, dy.stride(0), dy.stride(1)};
  const CodebookGrad pass{grad, data<float>(xt), w, entries};
  std::vector<double> parts(size_t(pass.tasks() * entries));
  if (dy.size(0)) tasks(pass.tasks(), 1, [&](int64_t i) { pass.run(i, parts.data() + i * entries); });
  for (int64_t k = 0; k < entries; ++k) {
    double total = 0;
    for (int64_t i = 0; i < pass.tasks(); ++i) total += parts[size_t(i * entries + k)];
    written(sums)[k] = float(total);
  }
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) {
  m.impl("palette_linear_run", TORCH_BOX(&rdk::run));
  m.impl("palette_linear_sum", TORCH_BOX(&rdk::sum));
}
