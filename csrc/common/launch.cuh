// What launches of kernels share, without torch: the device, memory, errors.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/device.cuh"

namespace rdk::gpu {

struct Device {
  size_t shared_limit;  // bytes of shared memory that a kernel may opt in to
  cudaStream_t stream;
};

// Where launches get memory; the caller owns it.
struct Allocator {
  virtual void* take(int64_t bytes) = 0;  // 256-byte aligned, alive until the launches have run

 protected:
  ~Allocator() = default;
};

inline int blocks_of(int64_t size, int64_t block) {
  const int64_t blocks = (size + block - 1) / block;
  if (blocks >= int64_t(1) << 31) throw std::runtime_error("rdkernels: too many blocks of work for one launch");
  return int(blocks);
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("rdkernels: ") + what + " failed: " + cudaGetErrorString(error));
}
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

template <class... P>
void opt_in(void (*kernel)(P...), int bytes, const Device& device) {
  if (size_t(bytes) > device.shared_limit) throw std::runtime_error("rdkernels: this GPU has too little shared memory");
  if (bytes > 48 * 1024) check(cudaError_t(smem_optin(kernel, bytes)), "raising the shared memory limit");
}

}  // namespace rdk::gpu
