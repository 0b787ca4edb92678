// What the rooms of the low-rank chains share on the CPU: the layout of packed factors.
#include "common/panels.h"
#include "common/tensor.h"

namespace rdk {
namespace {

// Writes a matrix [taps, depth, columns] into the strips at `offset` of `packed`, which are `rows` deep, from `row` on.
void strips(Tensor packed, int64_t offset, int64_t rows, int64_t row, const Tensor& matrix) {
  STD_TORCH_CHECK(matrix.dim() == 3 && matrix.scalar_type() == ScalarType::Float &&
                      packed.scalar_type() == ScalarType::Float && packed.is_contiguous(),
                  "lowrank_strips: matrix must be a 3-D float32 tensor, packed contiguous float32");
  const Matrix m{data<float>(matrix), matrix.size(0),   matrix.size(1),  matrix.size(2),
                 matrix.stride(0),    matrix.stride(1), matrix.stride(2)};
  const int64_t strip = rows * kVec, count = strips_of(m.columns);
  STD_TORCH_CHECK(offset >= 0 && row >= 0 && row + m.taps * m.depth <= rows && offset + count * strip <= packed.numel(),
                  "lowrank_strips: packed is too small");
  float* const to = static_cast<float*>(packed.mutable_data_ptr()) + offset + row * kVec;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, strip)),
                              [&](int64_t first, int64_t last) {
                                for (int64_t s = first; s < last; ++s) pack_strip(m, s, to + s * strip);
                              });
}

int64_t panel() { return kPanel; }

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("lowrank_strips", TORCH_BOX(&rdk::strips)); }
STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CompositeExplicitAutograd, m) {
  m.impl("lowrank_panel", TORCH_BOX(&rdk::panel));
}
