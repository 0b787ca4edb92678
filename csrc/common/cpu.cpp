// What the rooms of the low-rank chains share on the CPU: the layout of packed factors, the gradient of taps.
#include "common/conv_tensor.h"
#include "common/panels.h"
#include "common/tap_grads.h"
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

Tensor tap_grads(const Tensor& dz, const Tensor& t, int64_t groups, int64_t kh, int64_t kw, int64_t top, int64_t left,
                 int64_t dilation_h, int64_t dilation_w) {
  const char* op = "lowrank_tap_grads";
  for (const Tensor* map : {&dz, &t}) {
    STD_TORCH_CHECK(
        map->dim() == 4 && map->scalar_type() == ScalarType::Float && (map->size(1) == 1 || map->stride(1) == 1), op,
        ": maps must be 4-D float32, channels side by side");
    STD_TORCH_CHECK(groups > 0 && map->size(1) > 0 && map->size(1) % groups == 0, op, ": channels must divide into ",
                    groups, " groups, got ", map->size(1));
  }
  STD_TORCH_CHECK(dz.size(0) == t.size(0), op, ": dz and t must be of one batch");
  STD_TORCH_CHECK(kh > 0 && kw > 0 && dilation_h > 0 && dilation_w > 0, op, ": taps and dilations must be positive");
  Tensor grads = torch::stable::new_empty(dz, {kh, kw, groups, dz.size(1) / groups, t.size(1) / groups});
  float* const made = static_cast<float*>(grads.mutable_data_ptr());
  const TapGrads kernel{
      image<const float>(dz), image<const float>(t), groups, kh, kw, top, left, dilation_h, dilation_w, made};
  if (dz.numel() == 0 || t.numel() == 0) {
    std::fill_n(made, kernel.size(), 0.0f);
    return grads;
  }
  std::vector<float> partial(size_t(kernel.partial_floats()));
  parallel(kernel.tasks(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernel.run(i, partial.data());
  });
  kernel.add_parts(partial.data());
  return grads;
}

// [kh, kw, groups, R2, R1] -> [groups, R2, R1, kh, kw]
Tensor taps_last(const Tensor& grads) {
  STD_TORCH_CHECK(grads.dim() == 5 && grads.scalar_type() == ScalarType::Float && grads.is_contiguous(),
                  "lowrank_taps_last: grads must be 5-D contiguous float32");
  const int64_t taps = grads.size(0) * grads.size(1), count = grads.size(2) * grads.size(3) * grads.size(4);
  Tensor made =
      torch::stable::new_empty(grads, {grads.size(2), grads.size(3), grads.size(4), grads.size(0), grads.size(1)});
  float* const to = static_cast<float*>(made.mutable_data_ptr());
  torch::stable::parallel_for(0, strips_of(count), std::max<int64_t>(1, 2048 / taps), [&](int64_t first, int64_t last) {
    turn_taps(data<float>(grads), taps, count, first * kVec, std::min(count, last * kVec), to);
  });
  return made;
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) {
  m.impl("lowrank_strips", TORCH_BOX(&rdk::strips));
  m.impl("lowrank_tap_grads", TORCH_BOX(&rdk::tap_grads));
  m.impl("lowrank_taps_last", TORCH_BOX(&rdk::taps_last));
}
STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CompositeExplicitAutograd, m) {
  m.impl("lowrank_panel", TORCH_BOX(&rdk::panel));
}
