// CP convolution on the CPU: the registration.
#include "common/conv_tensor.h"
#include "cp_conv2d/fused.h"
#include "cp_conv2d/line_grads.h"

namespace rdk {
namespace {

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& inner, const std::optional<Tensor>& lines,
         int64_t ranks, int64_t kh, int64_t kw, int64_t stride_h, int64_t stride_w, int64_t top, int64_t bottom,
         int64_t left, int64_t right, int64_t dilation_h, int64_t dilation_w, int64_t activation) {
  const Geometry g{stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w};
  const ConvCall call{"cp_conv2d_run", y, x, packed, bias, residual, g, activation};
  call.check(CP<float>::packed_floats(x.size(1), y.size(1), ranks, kh, kw));
  call.dispatch([&]<class T>(const Image<const T>& from, const Output<T>& to) {
    run_tiles(CP<T>{from, to, g, kh, kw, {ranks}, call.weights(), kept(inner), kept(lines)});
  });
}

// The gradients of both lines, as `taps` stands: [kh + kw, ranks in whole strips].
Tensor line_grads(const Tensor& t, const Tensor& dz, const Tensor& taps, int64_t kh, int64_t top, int64_t left,
                  int64_t dilation_h, int64_t dilation_w) {
  const char* op = "cp_conv2d_line_grads";
  for (const Tensor* map : {&t, &dz}) {
    STD_TORCH_CHECK(map->dim() == 4 && map->scalar_type() == ScalarType::Float && map->stride(1) == 1 &&
                        map->stride(3) == map->size(1) && map->stride(2) == map->size(3) * map->size(1) &&
                        map->stride(0) == map->size(2) * map->stride(2),
                    op, ": maps must be channels_last float32");
  }
  const int64_t row = ceil_to(t.size(1), kVec), kw = taps.numel() / row - kh;
  STD_TORCH_CHECK(
      taps.scalar_type() == ScalarType::Float && taps.is_contiguous() && kw > 0 && taps.numel() == (kh + kw) * row, op,
      ": taps must be contiguous float32 [kh + kw, ", row, "]");
  STD_TORCH_CHECK(t.size(0) == dz.size(0) && t.size(1) == dz.size(1), op, ": t and dz must have one batch and ranks");
  Tensor grads = torch::stable::new_empty(taps, {kh + kw, row});
  const LineGrads kernel{data<float>(t),
                         data<float>(dz),
                         t.size(0),
                         t.size(2),
                         t.size(3),
                         dz.size(2),
                         dz.size(3),
                         t.size(1),
                         top,
                         left,
                         dilation_h,
                         dilation_w,
                         kh,
                         kw,
                         data<float>(taps),
                         static_cast<float*>(grads.mutable_data_ptr())};
  parallel(kernel.tasks(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernel.run(i);
  });
  return grads;
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) {
  m.impl("cp_conv2d_run", TORCH_BOX(&rdk::run));
  m.impl("cp_conv2d_line_grads", TORCH_BOX(&rdk::line_grads));
}
