// The virtual weight map, version 1 (docs/map.md), sixteen coordinates at a time. No torch header.
#pragma once

#include "common/map.h"
#include "common/vec.h"

namespace rdk {

// High word of the 64-bit product, lane by lane.
RDK_INLINE U mulhi(U a, uint32_t b) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  const __m512i x = (__m512i)a, y = _mm512_set1_epi32(int(b));
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  return (U)_mm512_mask_blend_epi32(0xAAAA, even, odd);
#elif defined(__AVX2__) && !defined(RDK_LANES)
  const __m256i x = (__m256i)a, y = _mm256_set1_epi32(int(b));
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  return (U)_mm256_blend_epi32(even, odd, 0xAA);
#elif defined(__SSE2__) && !defined(RDK_LANES)
  const __m128i x = (__m128i)a, y = _mm_set1_epi32(int(b));
  const __m128i even = _mm_srli_epi64(_mm_mul_epu32(x, y), 32);
  const __m128i odd = _mm_mul_epu32(_mm_srli_epi64(x, 32), y);
  return (U)_mm_or_si128(even, _mm_and_si128(odd, _mm_set1_epi64x(int64_t(0xffffffff00000000))));
#elif defined(__aarch64__) && !defined(RDK_LANES)
  const uint32x4_t x = (uint32x4_t)a;
  const uint32x2_t y = vdup_n_u32(b);
  const uint64x2_t low = vmull_u32(vget_low_u32(x), y), high = vmull_u32(vget_high_u32(x), y);
  return (U)vuzp2q_u32(vreinterpretq_u32_u64(low), vreinterpretq_u32_u64(high));
#else
  U high;
  for (int i = 0; i < kLanes; ++i) high[i] = uint32_t(uint64_t(a[i]) * b >> 32);
  return high;
#endif
}

// What moves each lane's sign bit of aux to bit 31, as a shift and as a factor.
alignas(64) constexpr uint32_t kSignShift[kVec] = {31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8};

RDK_INLINE U sign_lanes(uint32_t aux, int i) {
#if defined(__SSE2__) && !defined(__AVX2__)  // no shift by lane: multiply by the power of two
  return splat(aux) * (U)(splat(1u) << load(kSignShift + i * kLanes)) & kSignBit;
#else
  return (splat(aux) << load(kSignShift + i * kLanes)) & kSignBit;
#endif
}
RDK_INLINE U16 sign_lanes16(uint32_t aux) {
  return map16([=](int i) { return sign_lanes(aux, i); });
}
RDK_INLINE V16 flip(V16 v, U16 signs) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) v.r[i] = floats(bits(v.r[i]) ^ signs.r[i]);
  return v;
}

// Sixteen granule vectors of V: vector j stands at bank + 16 * vector[j], its lanes' signs are in aux[j].
struct Places {
  alignas(64) uint32_t vector[kVec];
  alignas(64) uint32_t aux[kVec];
};

template <class T>
RDK_INLINE V16 decode_vector(const T* bank, const Places& at, int j) {
  return flip(load16(bank + size_t(at.vector[j]) * kVec), sign_lanes16(at.aux[j]));
}

// Random lines of the bank: ask for them a block ahead.
template <class T>
RDK_INLINE void prefetch(const T* bank, const uint32_t* vector) {
  RDK_UNROLL for (int j = 0; j < kVec; ++j) __builtin_prefetch(bank + size_t(vector[j]) * kVec);
}

// Prefixes of rows o0 .. o0+15.
RDK_INLINE U16 row_prefixes(const Map& map, uint32_t o0) {
  const U16 o = iota16(o0);
  return map16([&](int i) { return hash_prefix<U>(o.r[i] >> map.go_shift, map.seed); });
}

// V[o0 + j, i0 .. i0+15] for j = 0 .. 15; i0 a multiple of 16, the granule no element.
RDK_INLINE void place_rows(const Map& map, const U16& prefix, uint32_t o0, uint32_t i0, Places* at) {
  const uint32_t column_hash = (i0 >> map.gi_shift) * kPrime3, column = (i0 & map.gi_mask()) >> 4;
  const U16 o = iota16(o0);
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    const U h = hash_finish<U>(prefix.r[i] + column_hash), aux = aux_of<U>(h);
    const U row = (o.r[i] ^ aux >> 24) & map.go_mask();
    const U vector = (splat(column) ^ aux >> 8) & map.vector_mask();
    store(at->vector + i * kLanes, (mulhi(h, map.slots) << map.slot_shift()) + (row << map.row_shift()) + vector);
    store(at->aux + i * kLanes, aux);
  }
}

// Sixteen vectors v0 .. v0+15 along a row of granules, `prefix` its hash: without the row inside the granule, which is
// (r << row_shift) ^ row[j] vectors further for the granule's row r.
RDK_INLINE void place_vectors(const Map& map, uint32_t prefix, uint32_t v0, uint32_t* vector, uint32_t* row,
                              uint32_t* aux) {
  const U16 v = iota16(v0);
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    const U h = hash_finish<U>((v.r[i] >> map.row_shift()) * kPrime3 + prefix), a = aux_of<U>(h);
    store(vector + i * kLanes, (mulhi(h, map.slots) << map.slot_shift()) + ((v.r[i] ^ a >> 8) & map.vector_mask()));
    store(row + i * kLanes, (a >> 24 & map.go_mask()) << map.row_shift());
    store(aux + i * kLanes, a);
  }
}

// The hashes of V[o, i0 .. i0+15] of an element map.
RDK_INLINE U16 row_hashes(const Map& map, uint32_t o, uint32_t i0) {
  const uint32_t prefix = hash_prefix<uint32_t>(o, map.seed);
  const U16 column = iota16(i0);
  return map16([&](int i) { return hash_finish<U>(column.r[i] * kPrime3 + prefix); });
}

// The bank's values at sixteen slots of one value, signed by bit 0 of the hash.
template <class T>
RDK_INLINE V16 gather_element(const T* bank, const Map& map, U16 h) {
  alignas(64) uint32_t slot[kVec];
  alignas(64) float value[kVec];
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) store(slot + i * kLanes, mulhi(h.r[i], map.slots));
  RDK_UNROLL for (int i = 0; i < kVec; ++i) value[i] = to_float(bank[slot[i]]);
  return flip(load16(value), map16([&](int i) { return h.r[i] << 31; }));
}
#if defined(__AVX2__) && !defined(RDK_LANES)
RDK_INLINE V16 gather_element(const float* bank, const Map& map, U16 h) {
  V16 v;
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    const U slot = mulhi(h.r[i], map.slots);
#if defined(__AVX512F__)
    const F w = (F)_mm512_i32gather_ps((__m512i)slot, bank, 4);
#else
    const F w = (F)_mm256_i32gather_ps(bank, (__m256i)slot, 4);
#endif
    v.r[i] = floats(bits(w) ^ h.r[i] << 31);
  }
  return v;
}
#endif

}  // namespace rdk
