// A stack for each CUDA thread, and the switch from one to another.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers on the stack, the stack pointer in *from, and goes on where `to` was saved
// (fiber.cpp).
extern "C" void simt_swap(void** from, void* to);

namespace simt {

// Where a stack stands while another runs. `stack` and `size` are for the address sanitizer.
struct Context {
  void* pointer = nullptr;
  const void* stack = nullptr;
  size_t size = 0;
  void* fake = nullptr;
};

constexpr size_t kStack = 64 << 10, kGuard = 4 << 10;  // the guard: an overflow is a fault, not the neighbour's data

// Stacks are kept from launch to launch: mapping them costs more than small kernels.
class Stack {
 public:
  Stack() {
    void* at = mmap(nullptr, kGuard + kStack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    low_ = static_cast<char*>(at) + kGuard;
    if (mprotect(low_, kStack, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
  }
  Stack(const Stack&) = delete;
  ~Stack() { munmap(low_ - kGuard, kGuard + kStack); }

  // A context that begins with `entry` on the empty stack.
  Context begin(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(low_, kStack);  // what an abandoned thread left
#endif
    void** top = reinterpret_cast<void**>(low_ + kStack);
#if defined(__x86_64__)
    top -= 8;  // six registers, the entry, and no return address, which also aligns the stack as a call does
    for (int i = 0; i < 8; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = nullptr;
    top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
    return {top, low_, kStack, nullptr};
  }

 private:
  char* low_;
};

// `last`: `from` is never resumed.
inline void change(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.stack, to.size);
#endif
  simt_swap(&from.pointer, to.pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

// The first thing on a new stack; learns the stack of `main`, which starts the first fiber.
inline void begun([[maybe_unused]] Context& main) {
#ifdef __SANITIZE_ADDRESS__
  const bool known = main.stack;
  __sanitizer_finish_switch_fiber(nullptr, known ? nullptr : &main.stack, known ? nullptr : &main.size);
#endif
}

}  // namespace simt
