// Tucker-2 convolution on the CPU: the registration.
#include "common/conv_tensor.h"
#include "common/core.h"

namespace rdk {
namespace {

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& first, const std::optional<Tensor>& second,
         int64_t r1, int64_t r2, int64_t kh, int64_t kw, int64_t stride_h, int64_t stride_w, int64_t top,
         int64_t bottom, int64_t left, int64_t right, int64_t dilation_h, int64_t dilation_w, int64_t activation) {
  const Geometry g{stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w};
  const ConvCall call{"tucker_conv2d_run", y, x, packed, bias, residual, g, activation};
  call.dispatch([&]<class T>(const Image<const T>& from, const Output<T>& to) {
    const TuckerChain<T> chain{from, to, g, kh, kw, {r1}, {r2}, {}, call.weights(), kept(first), kept(second)};
    call.check(chain.packed_floats());
    run_tiles(chain);
  });
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("tucker_conv2d_run", TORCH_BOX(&rdk::run)); }
