// CUDA's built-in device functions, in the global namespace as CUDA has them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "simt/runtime.h"

using std::max;
using std::min;

// -- barriers and warp collectives
inline void __syncthreads(const simt::Site& site = simt::Site::current()) { simt::barrier(false, site); }
inline int __syncthreads_count(int p, const simt::Site& site = simt::Site::current()) { return simt::barrier(p, site); }
inline int __syncthreads_or(int p, const simt::Site& site = simt::Site::current()) {
  return simt::barrier(p, site) != 0;
}
inline int __syncthreads_and(int p, const simt::Site& site = simt::Site::current()) {
  return simt::barrier(!p, site) == 0;
}

constexpr uint32_t kSimtFullMask = 0xffffffffu;
inline void __syncwarp(uint32_t mask = kSimtFullMask, const simt::Site& site = simt::Site::current()) {
  simt::syncwarp(mask, site);
}
inline uint32_t __ballot_sync(uint32_t mask, int p, const simt::Site& site = simt::Site::current()) {
  return simt::ballot(mask, p, site);
}
inline int __any_sync(uint32_t mask, int p, const simt::Site& site = simt::Site::current()) {
  return simt::ballot(mask, p, site) != 0;
}
inline int __all_sync(uint32_t mask, int p, const simt::Site& site = simt::Site::current()) {
  return simt::ballot(mask, p, site) == mask;
}

namespace simt {
template <class T>
T shuffle(Shuffle mode, uint32_t mask, T value, int by, int width, const Site& site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(mode, mask, bits, by, width, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace simt
#define SIMT_SHUFFLE(name, mode)                                                                           \
  template <class T>                                                                                       \
  T name(uint32_t mask, T value, int by, int width = 32, const simt::Site& site = simt::Site::current()) { \
    return simt::shuffle<T>(simt::Shuffle::mode, mask, value, by, width, site);                            \
  }
SIMT_SHUFFLE(__shfl_sync, Index)
SIMT_SHUFFLE(__shfl_up_sync, Up)
SIMT_SHUFFLE(__shfl_down_sync, Down)
SIMT_SHUFFLE(__shfl_xor_sync, Xor)
#undef SIMT_SHUFFLE

#define SIMT_REDUCE(name, type, op)                                                             \
  inline type name(uint32_t mask, type value, const simt::Site& site = simt::Site::current()) { \
    return type(simt::reduce(simt::Reduce::op, mask, uint32_t(value), site));                   \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, Add)
SIMT_REDUCE(__reduce_add_sync, int, Add)
SIMT_REDUCE(__reduce_min_sync, unsigned, Min)
SIMT_REDUCE(__reduce_min_sync, int, MinSigned)
SIMT_REDUCE(__reduce_max_sync, unsigned, Max)
SIMT_REDUCE(__reduce_max_sync, int, MaxSigned)
SIMT_REDUCE(__reduce_and_sync, unsigned, And)
SIMT_REDUCE(__reduce_or_sync, unsigned, Or)
SIMT_REDUCE(__reduce_xor_sync, unsigned, Xor)
#undef SIMT_REDUCE

// -- memory
namespace simt {
template <class T, class Fn>
SIMT_UNTRACED T atomic(T* p, const Site& site, const Fn& changed) {
  check_aligned(p, sizeof(T), "an atomic", site);
  trace::access(p, sizeof(T), trace::Op::Atomic, site);
  const T old = *p;
  *p = changed(old);
  return old;
}
}  // namespace simt
#define SIMT_ATOMIC(name, T, result)                                                   \
  inline T name(T* p, T v, const simt::Site& site = simt::Site::current()) {           \
    return simt::atomic(p, site, [&]([[maybe_unused]] T old) -> T { return result; }); \
  }
SIMT_ATOMIC(atomicAdd, float, old + v)
SIMT_ATOMIC(atomicAdd, double, old + v)
SIMT_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(v)))
SIMT_ATOMIC(atomicAdd, unsigned, old + v)
SIMT_ATOMIC(atomicAdd, unsigned long long, old + v)
SIMT_ATOMIC(atomicAdd, __half2, __hadd2(old, v))
SIMT_ATOMIC(atomicAdd, __nv_bfloat162, __hadd2(old, v))
SIMT_ATOMIC(atomicMax, int, std::max(old, v))
SIMT_ATOMIC(atomicMax, unsigned, std::max(old, v))
SIMT_ATOMIC(atomicMin, int, std::min(old, v))
SIMT_ATOMIC(atomicMin, unsigned, std::min(old, v))
SIMT_ATOMIC(atomicOr, unsigned, old | v)
SIMT_ATOMIC(atomicAnd, unsigned, old& v)
SIMT_ATOMIC(atomicXor, unsigned, old ^ v)
SIMT_ATOMIC(atomicExch, int, v)
SIMT_ATOMIC(atomicExch, unsigned, v)
SIMT_ATOMIC(atomicExch, float, v)
#undef SIMT_ATOMIC
template <class T>
T atomicCAS(T* p, T expected, T desired, const simt::Site& site = simt::Site::current()) {
  return simt::atomic(p, site, [&](T old) { return old == expected ? desired : old; });
}

template <class T>
SIMT_UNTRACED T __ldg(const T* p, const simt::Site& site = simt::Site::current()) {
  simt::check_aligned(p, sizeof(T), "__ldg", site);
  simt::trace::access(p, sizeof(T), simt::trace::Op::Read, site);
  return *p;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { simt::fail(simt::Site(), "__trap"); }

// -- integers
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)(a)*b >> 64);
}
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(uint32_t(x)); }
inline int __clzll(long long x) { return std::countl_zero(uint64_t(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(uint32_t(x)) + 1 : 0; }
inline uint32_t __brev(uint32_t x) {
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> 4 * i & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (s & 7)) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, eight times
    r |= byte << 8 * i;
  }
  return r;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t((uint64_t(high) << 32 | low) >> (by & 31));
}

// -- floats; the fast ones are the host's, not a GPU's approximations
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
