// The virtual weight map, version 1 (docs/map.md): what CPU vectors, plain words and CUDA threads share. No torch
// header.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define RDK_ANYWHERE __host__ __device__ __forceinline__
#else
#define RDK_ANYWHERE inline __attribute__((always_inline))
#endif

namespace rdk {

constexpr uint32_t kPrime2 = 2246822519u, kPrime3 = 3266489917u, kPrime4 = 668265263u, kPrime5 = 374761393u;
constexpr uint32_t kSignBit = 0x80000000u;

struct Map {
  uint32_t seed, slots;
  int go_shift, gi_shift;  // log2 of the granule

  Map(int64_t seed_, int64_t slots_, int64_t go, int64_t gi)
      : seed(uint32_t(seed_)),
        slots(uint32_t(slots_)),
        go_shift(std::countr_zero(uint64_t(go))),
        gi_shift(std::countr_zero(uint64_t(gi))) {}

  RDK_ANYWHERE bool element() const { return gi_shift == 0; }
  RDK_ANYWHERE uint32_t go_mask() const { return (1u << go_shift) - 1; }
  RDK_ANYWHERE uint32_t gi_mask() const { return (1u << gi_shift) - 1; }
  RDK_ANYWHERE int row_shift() const { return gi_shift - 4; }              // log2 of the vectors in a granule's row
  RDK_ANYWHERE int slot_shift() const { return go_shift + gi_shift - 4; }  // log2 of the vectors in a slot
  RDK_ANYWHERE uint32_t vector_mask() const { return (1u << row_shift()) - 1; }
};

template <class W>
RDK_ANYWHERE W rotate17(W h) {
  return h << 17 | h >> 15;
}

// The half of XXH32 that depends on p alone; W is uint32_t or U.
template <class W>
RDK_ANYWHERE W hash_prefix(W p, uint32_t seed) {
  return rotate17<W>(p * kPrime3 + (seed + kPrime5 + 8u)) * kPrime4;
}

// The rest; h = hash_prefix(p) + q * kPrime3.
template <class W>
RDK_ANYWHERE W hash_finish(W h) {
  h = rotate17<W>(h) * kPrime4;
  h = (h ^ h >> 15) * kPrime2;
  h = (h ^ h >> 13) * kPrime3;
  return h ^ h >> 16;
}

template <class W>
RDK_ANYWHERE W aux_of(W h) {
  return (h ^ h >> 15) * kPrime2;
}

}  // namespace rdk
