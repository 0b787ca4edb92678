// Monochromatic convolution on the CPU: the registration.
#include "common/conv_tensor.h"
#include "monochromatic_conv2d/fused.h"

namespace rdk {
namespace {

const int64_t* indices(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() == count,
                  "monochromatic_conv2d_run: counts and order must be contiguous int64 tensors");
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(data<int64_t>(t)[i] >= 0, "monochromatic_conv2d_run: counts and order must not be negative");
  }
  return data<int64_t>(t);
}

void run(Tensor y, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const std::optional<Tensor>& given_counts,
         const std::optional<Tensor>& order, int64_t kh, int64_t kw, int64_t stride_h, int64_t stride_w, int64_t top,
         int64_t bottom, int64_t left, int64_t right, int64_t dilation_h, int64_t dilation_w, int64_t activation) {
  const Geometry g{stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w};
  const ConvCall call{"monochromatic_conv2d_run", y, x, packed, bias, residual, g, activation};
  STD_TORCH_CHECK(given_counts.has_value(), "monochromatic_conv2d_run: counts are needed");
  const Tensor& counts = *given_counts;
  const int64_t colours = counts.numel();
  const int64_t* const of_colour = indices(counts, colours);
  const int64_t* const channel = order ? indices(*order, y.size(1)) : nullptr;
  int64_t outputs = 0;
  for (int64_t k = 0; k < colours; ++k) outputs += of_colour[k];
  STD_TORCH_CHECK(outputs == y.size(1), "monochromatic_conv2d_run: counts must sum to y's channels");
  for (int64_t c = 0; channel && c < outputs; ++c) {
    STD_TORCH_CHECK(channel[c] < outputs, "monochromatic_conv2d_run: no channel ", channel[c]);
  }
  call.dispatch(
      [&]<class T>(const Image<const T>& from, const Output<T>& to) {
        const Monochromatic<T> kernel{from, to, g, kh, kw, colours, of_colour, call.weights()};
        call.check(kernel.packed_floats());
        run_tiles(kernel);
      },
      channel);
}

}  // namespace
}  // namespace rdk

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CPU, m) { m.impl("monochromatic_conv2d_run", TORCH_BOX(&rdk::run)); }
