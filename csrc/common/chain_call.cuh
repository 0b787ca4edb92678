// Between torch's tensors and the chains: what every low-rank operator checks and hands over.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "common/chain_launch.cuh"
#include "common/cuda_call.h"

namespace rdk::gpu {

class TorchMemory final : public Allocator {
 public:
  explicit TorchMemory(Call& call) : call_(call) {}
  void* take(int64_t bytes) override { return call_.take(bytes); }

 private:
  Call& call_;
};

template <class T>
Map4<const T> map4(const Tensor& t) {
  return {data<T>(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// `t` must be like x in dtype and device, of these sizes (-1: any, at least one).
inline void check_argument(const char* op, const char* name, const Tensor& t, const Tensor& x,
                           std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have x's dtype");
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), op, ": ", name,
                  " must be on x's device");
  bool fits = t.dim() == int64_t(sizes.size());
  for (size_t d = 0; fits && d < sizes.size(); ++d) {
    const int64_t want = sizes.begin()[d], have = t.size(int64_t(d));
    fits = have < (int64_t(1) << 31) - 256 && (want < 0 ? have > 0 : have == want);
  }
  STD_TORCH_CHECK(fits, op, ": ", name, " does not have the shape that x and the other factors ask for");
}

inline Tensor checked_factor(const char* op, const char* name, const Tensor& t, const Tensor& x,
                             std::initializer_list<int64_t> sizes) {
  check_argument(op, name, t, x, sizes);
  return as_contiguous(t);
}

// One call of a convolution's operator: its output, and what the epilogue adds.
class ConvCall {
 public:
  ConvCall(const char* op, const Tensor& x, int64_t channels, int64_t kh, int64_t kw, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& residual, int64_t stride_h, int64_t stride_w, int64_t top, int64_t bottom,
           int64_t left, int64_t right, int64_t dilation_h, int64_t dilation_w, int64_t activation)
      : op_(op),
        x_(x),
        y_(output(op, x, channels, span(op, x.size(2), top, bottom, kh, stride_h, dilation_h),
                  span(op, x.size(3), left, right, kw, stride_w, dilation_w))),
        bias_(bias ? std::optional(checked_factor(op, "bias", *bias, x, {channels})) : std::nullopt),
        residual_(residual),
        activation_(Activation(activation)),
        geometry_{int(stride_h), int(stride_w), int(top), int(left), int(dilation_h), int(dilation_w)} {
    STD_TORCH_CHECK(activation >= 0 && activation <= 3, op, ": activation must be 0 to 3, got ", activation);
    if (residual) check_argument(op, "residual", *residual, x, {y_.size(0), channels, y_.size(2), y_.size(3)});
  }

  // fn(problem) with a problem of the given kind for x's dtype, all but its factors set.
  template <template <class> class Problem, class Fn>
  std::vector<Tensor> run(const Fn& fn) {
    if (y_.numel() == 0) return {y_};
    Call call(x_);
    TorchMemory memory(call);
    dispatch_dtype<BFloat16, Half>(op_, x_, [&]<class T>(T) {
      Problem<T> p{};
      p.x = {map4<T>(x_), x_.size(0), x_.size(1), x_.size(2), x_.size(3)};
      p.y = {{static_cast<T*>(y_.mutable_data_ptr()), y_.stride(0), y_.stride(1), y_.stride(2), y_.stride(3)},
             y_.size(0),
             y_.size(1),
             y_.size(2),
             y_.size(3)};
      if (residual_) p.residual = map4<T>(*residual_);
      if (bias_) p.bias = data<T>(*bias_);
      p.activation = activation_, p.geometry = geometry_;
      fn(p, memory, Device{shared_limit(call.device()), call.stream()});
    });
    return {y_};
  }

 private:
  static int64_t span(const char* op, int64_t size, int64_t before, int64_t after, int64_t taps, int64_t stride,
                      int64_t dilation) {
    STD_TORCH_CHECK(taps > 0 && stride > 0 && dilation > 0 && before >= 0 && after >= 0, op,
                    ": stride and dilation must be positive, padding not negative");
    const int64_t room = size + before + after - dilation * (taps - 1) - 1;
    STD_TORCH_CHECK(room >= 0, op, ": the kernel does not fit x");
    return room / stride + 1;
  }
  // In x's memory format, as torch's convolutions.
  static Tensor output(const char* op, const Tensor& x, int64_t channels, int64_t h, int64_t w) {
    check_argument(op, "x", x, x, {x.dim() ? x.size(0) : 0, -1, -1, -1});
    if (x.stride(1) != 1 || x.is_contiguous()) return torch::stable::new_empty(x, {x.size(0), channels, h, w});
    const Tensor pixels = torch::stable::new_empty(x, {x.size(0), h, w, channels});
    return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);
  }

  const char* const op_;
  const Tensor x_;
  Tensor y_;
  const std::optional<Tensor> bias_, residual_;
  const Activation activation_;
  const Geometry geometry_;
};

}  // namespace rdk::gpu
