// Biclustered convolution on the CPU: the registration.
#include "common/conv_tensor.h"
#include "common/core.h"

namespace rdk {
namespace {

// None: the channels as they stand, cluster after cluster.
const int64_t* order(const std::optional<Tensor>& given, int64_t channels) {
  if (!given) return nullptr;
  const Tensor& t = *given;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() == channels,
                  "bicluster_conv2d_run: an order must be a contiguous int64 tensor of ", channels, " channels");
  const int64_t* const values = data<int64_t>(t);
  for (int64_t i = 0; i < channels; ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < channels, "bicluster_conv2d_run: no channel ", values[i]);
  }
  return values;
}

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& first, const std::optional<Tensor>& second,
         const std::optional<Tensor>& inputs, const std::optional<Tensor>& outputs, int64_t clusters_in,
         int64_t clusters_out, int64_t k1, int64_t k2, int64_t kh, int64_t kw, int64_t by_output, int64_t stride_h,
         int64_t stride_w, int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t dilation_h,
         int64_t dilation_w, int64_t activation) {
  const Geometry g{stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w};
  const ConvCall call{"bicluster_conv2d_run", y, x, packed, bias, residual, g, activation};
  STD_TORCH_CHECK(clusters_in > 0 && clusters_out > 0 && x.size(1) % clusters_in == 0 && y.size(1) % clusters_out == 0,
                  "bicluster_conv2d_run: clusters must divide the channels");
  const Clusters clusters{clusters_in, clusters_out, order(inputs, x.size(1)), by_output != 0};
  call.dispatch(
      [&]<class T>(const Image<const T>& from, const Output<T>& to) {
        const TuckerChain<T> chain{from,           to,          g,           kh, kw, {k1}, {k2}, clusters,
                                   call.weights(), kept(first), kept(second)};
        call.check(chain.packed_floats());
        run_tiles(chain);
      },
      order(outputs, y.size(1)));
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("bicluster_conv2d_run", TORCH_BOX(&rdk::run)); }
