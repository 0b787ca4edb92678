// Runs CUDA grids on the host: a fiber for each thread of a block, one block after the other. simt.h has CUDA's names.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <tuple>
#include <utility>

#include "simt/trace.h"

using cudaStream_t = struct CUstream_st*;

// Emulation code in an instrumented file: what it accesses for a kernel it reports itself, as the kernel's.
#ifdef __SANITIZE_THREAD__
#define SIMT_UNTRACED __attribute__((no_sanitize("thread")))
#else
#define SIMT_UNTRACED
#endif

namespace simt {

struct Config {
  int order = 0;             // of a block's threads: 0 forward, 1 reverse, 2 random
  int block_order = 0;       // of the blocks, likewise
  uint32_t seed = 1;         // of what is random
  int cp_early = 0;          // cp.async lands at the matching wait; 1: when issued too; 2: when issued too, at random
  bool strict_exit = false;  // no thread may exit while others wait at a barrier
  size_t smem_limit = 232448;
};
inline Config cfg;

// Where the running thread stands: which block since the process began, its barriers and full-warp syncs so far.
struct Where {
  bool running = false;
  int thread = 0;
  uint32_t launch_block = 0;  // the first block of this launch
  uint32_t block = 0, barrier = 0;
  uint32_t warp_sync[32] = {};
};
inline Where where;

// Ends the launch: RDK_LAUNCH throws std::runtime_error with the message, the thread, the block and the place. The
// kernel's frames are abandoned, not unwound.
[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// -- launches
void run(dim3 grid, dim3 block, size_t smem, const void* kernel, void (*body)(const void*), const void* call);
int smem_optin(const void* kernel, size_t bytes);

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t, A&&... args) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> args;
  };
  const Call call{kernel, {std::forward<A>(args)...}};
  const auto body = [](const void* p) {
    std::apply(static_cast<const Call*>(p)->kernel, static_cast<const Call*>(p)->args);
  };
  run(grid, block, smem, reinterpret_cast<const void*>(kernel), body, &call);
}

// -- shared memory, every byte 0xff when a block begins
void* dynamic_shared();
struct SharedArray {
  uint32_t block = 0;  // the last block that used it
  void enter(void* data, size_t bytes, const char* name);
};
// Fails unless `bytes` from `p` on are the block's shared memory, and aligned.
void check_shared(const void* p, size_t bytes, const char* what, const Site& site);
void check_aligned(const void* p, size_t bytes, const char* what, const Site& site);

// -- barriers: the number of threads that voted true
int barrier(bool vote, const Site& site);

// -- warp collectives: the lanes of `mask` meet; the last to come runs `finish` on all their arguments
struct Meeting;
using Finish = void (*)(Meeting&);
struct Meeting {
  uint32_t mask, arrived;
  Finish finish;
  Site site;
  int warp;
  void* args[32];  // by lane

  template <class A>
  A& at(int lane) const {
    return *static_cast<A*>(args[lane]);
  }
};
void meet(uint32_t mask, Finish finish, void* args, const Site& site);
int lane();
void syncwarp(uint32_t mask, const Site& site);
uint32_t ballot(uint32_t mask, bool vote, const Site& site);
enum class Shuffle { Index, Up, Down, Xor };
uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t value, int by, int width, const Site& site);
enum class Reduce { Add, Min, Max, MinSigned, MaxSigned, And, Or, Xor };
uint32_t reduce(Reduce op, uint32_t mask, uint32_t value, const Site& site);

void ldmatrix_x4(uint32_t* r, const void* row, bool trans, const Site& site);
enum class Element { Half, BFloat16, Tf32 };
void mma(Element type, float* d, const uint32_t* a, const uint32_t* b, const Site& site);

// -- cp.async
void cp_async16(void* smem, const void* gmem, int bytes, const Site& site);
void cp_async_commit();
void cp_async_wait(int groups);

}  // namespace simt

// CUDA's variables, set at each switch.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
