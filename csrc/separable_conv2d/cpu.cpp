// Separable convolution on the CPU: the registration.
#include "common/conv_tensor.h"
#include "separable_conv2d/fused.h"

namespace rdk {
namespace {

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& map, int64_t ranks, int64_t kh, int64_t kw,
         int64_t stride_h, int64_t stride_w, int64_t top, int64_t bottom, int64_t left, int64_t right,
         int64_t dilation_h, int64_t dilation_w, int64_t activation) {
  const Geometry g{stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w};
  const ConvCall call{"separable_conv2d_run", y, x, packed, bias, residual, g, activation};
  call.check(Separable<float>::packed_floats(x.size(1), y.size(1), ranks, kh, kw));
  call.dispatch([&]<class T>(const Image<const T>& from, const Output<T>& to) {
    run_tiles(Separable<T>{from, to, g, kh, kw, {ranks}, call.weights(), kept(map)});
  });
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("separable_conv2d_run", TORCH_BOX(&rdk::run)); }
