// Memory for kernels, as cudaMalloc gives it: aligned to 256 bytes, registered with the trace, its end guarded.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "simt/runtime.h"

namespace simt {

class DeviceMemory {
 public:
  // Filled with 0xff. The address sanitizer sees the first byte past the end; the trace, kSlack of them.
  DeviceMemory(size_t bytes, const char* name) : bytes_(bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 256, bytes + kSlack)) throw std::bad_alloc();
    data_.reset(p);
    std::memset(p, 0xff, bytes + kSlack);
    trace::region(p, bytes, name, kSlack);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { trace::forget(data_.get()); }

  template <class T>
  T* get() const {
    return static_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kSlack = 0;
#else
  static constexpr size_t kSlack = 4096;  // a stray write of the other builds harms nobody
#endif
  size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> data_{nullptr, std::free};
};

}  // namespace simt
