// What a CUDA operator needs of torch for one call: the device, its stream, memory, and torch's sort.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "common/tensor.h"

namespace rdk::gpu {

// Whether fp32 products may round their factors to tf32; set in Python before every fp32 call, from torch's own flag.
bool tf32_allowed();

// Bytes of shared memory that a kernel on `device` may opt in to.
size_t shared_limit(int device);

// The tensor's device is current while this lives.
class Call {
 public:
  explicit Call(const Tensor& like)
      : like_(like),
        device_(like.get_device_index()),
        guard_(device_),
        stream_(static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(device_).nativeHandle())) {}

  int device() const { return device_; }
  cudaStream_t stream() const { return stream_; }

  // Memory of torch's allocator for this stream: free for reuse by what follows on it once the call has returned.
  void* take(int64_t bytes) {
    kept_.push_back(torch::stable::new_empty(like_, {std::max<int64_t>(bytes, 1)}, ScalarType::Byte));
    return kept_.back().mutable_data_ptr();
  }

  // Hands over all that was taken since `mark` = taken().
  size_t taken() const { return kept_.size(); }
  std::vector<Tensor> release(size_t mark) {
    std::vector<Tensor> out(kept_.begin() + mark, kept_.end());
    kept_.resize(mark);
    return out;
  }

  // A stable sort of keys on the device: sorted, and where each came from; alive as what was taken is.
  void sort(const int* keys, int count, const int** sorted, const int64_t** from);

  // While a graph is captured nothing that is computed now holds a value yet.
  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream_, &status) != cudaSuccess || status != cudaStreamCaptureStatusNone;
  }

 private:
  Tensor like_;
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<Tensor> kept_;
};

}  // namespace rdk::gpu
