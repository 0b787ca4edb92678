// Per-thread work memory that is kept from call to call: fresh pages cost more than the smaller kernels.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

namespace rdk {

class Scratch {
 public:
  // `count` floats, 64-byte aligned, undefined; valid until the next call with the same `which` on this thread.
  static float* floats(int which, size_t count) {
    thread_local Buffer buffers[4];
    return buffers[which].reserve(count);
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<float, Free> data;
    size_t size = 0;
    float* reserve(size_t count) {
      if (count > size) {
        size = 0;  // should the allocation throw
        data.reset();
        count += count / 16;  // inner tiles are a few columns wider than the first: malloc keeps what is freed for them
        const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
        data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!data) throw std::bad_alloc();
        size = count;
      }
      return data.get();
    }
  };
};

}  // namespace rdk
