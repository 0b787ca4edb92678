// Between torch's tensors and the kernels of the low-rank chains on the CPU.
#pragma once

#include <optional>
#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "common/tensor.h"

namespace rdk {

template <class T>
Image<T> image(const Tensor& t) {
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())),
          t.size(0),
          t.size(1),
          t.size(2),
          t.size(3),
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3)};
}

inline Kept kept(const std::optional<Tensor>& t) {
  if (!t) return {};
  return {static_cast<float*>(t->mutable_data_ptr()), t->size(1), t->size(2), t->size(3)};
}

// The arguments that every pass of a convolution is given, checked as far as a kernel relies on them.
struct ConvCall {
  const char* op;
  const Tensor &y, &x, &packed;
  const std::optional<Tensor>&bias, &residual;
  Geometry g;
  int64_t activation;

  void check(int64_t packed_floats) const {
    STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0), op, ": x and y must be 4-D, of one batch");
    STD_TORCH_CHECK(
        packed.scalar_type() == ScalarType::Float && packed.is_contiguous() && packed.numel() == packed_floats, op,
        ": packed must hold ", packed_floats, " float32 values");
    STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), op, ": y must have x's dtype");
    STD_TORCH_CHECK(!bias || (bias->scalar_type() == x.scalar_type() && bias->numel() == y.size(1)), op,
                    ": bias must have ", y.size(1), " values of x's dtype");
    STD_TORCH_CHECK(activation >= 0 && activation <= 3, op, ": activation must be 0 to 3, got ", activation);
    if (!residual || y.numel() == 0) return;
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type() && residual->dim() == 4, op,
                    ": residual must be a 4-D tensor of x's dtype");
    for (int64_t d = 0; d < 4; ++d) {
      STD_TORCH_CHECK(residual->size(d) == y.size(d) && (y.size(d) == 1 || residual->stride(d) == y.stride(d)), op,
                      ": residual must have y's shape and strides");
    }
  }

  const float* weights() const { return data<float>(packed); }

  // fn(x, output) in the call's dtype; `order` as in Output.
  template <class Fn>
  void dispatch(const Fn& fn, const int64_t* order = nullptr) const {
    if (y.numel() == 0) return;
    dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
      const Tensor added = bias ? as_contiguous(*bias) : x;
      const std::vector<float> padded = padded_bias<T>(bias ? data<T>(added) : nullptr, y.size(1), order);
      fn(image<const T>(x),
         Output<T>{image<T>(y), padded.data(), residual ? data<T>(*residual) : nullptr, Activation(activation), order});
    });
  }
};

// Each tile of the output as a task, in one parallel region.
template <class Kernel>
void run_tiles(const Kernel& kernel) {
  const Tiles tiles = kernel.tiles(torch::stable::get_num_threads());
  parallel(tiles.count(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernel.run(tiles[i]);
  });
}

}  // namespace rdk
