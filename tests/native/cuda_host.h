// The CUDA launches of the hashed linear passes, run on the host: memory that counts as the GPU's, and a sort.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "hashed_linear/members.cuh"

// A launch that went wrong threw; the runtime has nothing more to say.
extern "C" __attribute__((weak)) cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" __attribute__((weak)) const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace rdk::gpu {

constexpr size_t kA100Shared = 166912;  // bytes of shared memory that a kernel may opt in to

// Aligned as device memory is, to the byte in size, every byte 0xff: NaN in every float type.
class Bytes {
 public:
  Bytes(int64_t bytes, const char* name) {
    void* at = nullptr;
    if (posix_memalign(&at, 256, std::max<int64_t>(bytes, 1)) != 0) throw std::bad_alloc();
    data_.reset(at);
    std::memset(at, 0xff, bytes);
    simt::trace::region(at, bytes, name);
  }
  template <class T>
  T* get() const {
    return static_cast<T*>(data_.get());
  }
  void* release() { return data_.release(); }

 private:
  std::unique_ptr<void, decltype(&std::free)> data_{nullptr, &std::free};
};

class HostMemory final : public Workspace {
 public:
  void* take(int64_t bytes) override {
    blocks_.emplace_back(bytes, "workspace");
    return blocks_.back().get<void>();
  }
  void sort(const int* keys, int count, const int** sorted, const int64_t** from) override {
    auto* const order = static_cast<int64_t*>(take(count * sizeof(int64_t)));
    auto* const out = static_cast<int*>(take(count * sizeof(int)));
    std::iota(order, order + count, int64_t(0));
    std::stable_sort(order, order + count, [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (int n = 0; n < count; ++n) out[n] = keys[order[n]];
    *sorted = out, *from = order;
  }
  Members members(const Map& map, const Region& where, const Device& device) override {
    return members_of(map, where, *this, device);
  }

 private:
  std::vector<Bytes> blocks_;
};

}  // namespace rdk::gpu
