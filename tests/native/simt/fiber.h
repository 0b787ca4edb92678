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

// Saves the callee-saved registers on the stack, the stack pointer in *from, and goes on where `to` was saved.
extern "C" void simt_swap(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl simt_swap
.hidden simt_swap
.type simt_swap,@function
simt_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_swap,.-simt_swap
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl simt_swap
.hidden simt_swap
.type simt_swap,%function
simt_swap:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_swap,.-simt_swap
)");
#else
#error "no fiber switch for this machine"
#endif

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
