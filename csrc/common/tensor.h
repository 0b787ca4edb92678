// Between torch's stable tensors and the torch-free kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace rdk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// fn(T{}) for the element type of `t`: float, BFloat16 or Half.
template <class BFloat16, class Half, class Fn>
void dispatch_dtype(const char* op, const Tensor& t, const Fn& fn) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return fn(float{});
    case ScalarType::BFloat16:
      return fn(BFloat16{});
    case ScalarType::Half:
      return fn(Half{});
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, bfloat16 or float16");
  }
}

// `t` itself where it is contiguous: the dispatcher's no-op costs a microsecond.
inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Tasks of `kernel` on torch's own pool, one parallel region.
template <class Fn>
void parallel(int64_t tasks, const Fn& fn) {
  torch::stable::parallel_for(0, tasks, 1, fn);
}

}  // namespace rdk
