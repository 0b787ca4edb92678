// What -fsanitize=thread makes the kernels call at each load and store, in the place of its own library.
#include <atomic>
#include <cstdint>

namespace simt::trace {
void hooked(uintptr_t pc, const void* p, uintptr_t bytes, bool write);
}

#define SIMT_HOOK(name, bytes, write) \
  void __tsan_##name(const void* p) { simt::trace::hooked(uintptr_t(__builtin_return_address(0)), p, bytes, write); }
#define SIMT_HOOKS(n)                             \
  SIMT_HOOK(read##n, n, false)                    \
  SIMT_HOOK(write##n, n, true)                    \
  SIMT_HOOK(unaligned_read##n, n, false)          \
  SIMT_HOOK(unaligned_write##n, n, true)          \
  SIMT_HOOK(volatile_read##n, n, false)           \
  SIMT_HOOK(volatile_write##n, n, true)           \
  SIMT_HOOK(unaligned_volatile_read##n, n, false) \
  SIMT_HOOK(unaligned_volatile_write##n, n, true)

// Host code only, such as reference counts: kernels have CUDA's atomics, which report themselves.
#define SIMT_ATOMICS(n, T)                                                                              \
  T __tsan_atomic##n##_load(const T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##n##_store(T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##n##_exchange(T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##n##_fetch_add(T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##n##_fetch_sub(T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##n##_fetch_and(T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##n##_fetch_or(T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  int __tsan_atomic##n##_compare_exchange_strong(T* p, T* c, T v, int, int) {                           \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
  }                                                                                                     \
  int __tsan_atomic##n##_compare_exchange_weak(T* p, T* c, T v, int, int) {                             \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
  }

extern "C" {
SIMT_HOOKS(1);
SIMT_HOOKS(2);
SIMT_HOOKS(4);
SIMT_HOOKS(8);
SIMT_HOOKS(16);
SIMT_ATOMICS(8, uint8_t);
SIMT_ATOMICS(16, uint16_t);
SIMT_ATOMICS(32, uint32_t);
SIMT_ATOMICS(64, uint64_t);

void __tsan_read_range(const void* p, uintptr_t bytes) {
  simt::trace::hooked(uintptr_t(__builtin_return_address(0)), p, bytes, false);
}
void __tsan_write_range(const void* p, uintptr_t bytes) {
  simt::trace::hooked(uintptr_t(__builtin_return_address(0)), p, bytes, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) {}
}
