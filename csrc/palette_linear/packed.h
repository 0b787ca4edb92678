// Packed indices and their codebook: sixteen outputs of one input in a few instructions. No torch header.
// The layout is that of rdkernels/ops/palette_linear/packing.py.
#pragma once

#include <algorithm>
#include <bit>

#include "common/vec.h"

namespace rdk {

constexpr int kMaxBits = 8;
constexpr int kBlockInputs = 8;  // of a block: a byte of single bits

// The entries, repeated to fill 256: an index' bits above its own then change nothing.
struct Codebook {
  alignas(64) float values[1 << kMaxBits];
  int bits;

  Codebook(const float* entries, int own) : bits(own) {
    for (int i = 0; i < 1 << kMaxBits; ++i) values[i] = entries[i & ((1 << bits) - 1)];
  }
  // Entry i is i, as the bits of a float: it decodes to indices.
  explicit Codebook(int own) : bits(own) {
    for (uint32_t i = 0; i < 1 << kMaxBits; ++i) values[i] = std::bit_cast<float>(i & ((1u << bits) - 1));
  }
};

#if defined(__AVX512F__) && !defined(RDK_LANES)
#define RDK_PERMUTES
// Of 2^kLevel pairs of registers from `values` on, the one that bits 5 and above name, then its entry.
template <int kLevel>
RDK_INLINE __m512 pick(const float* values, __m512i at) {
  if constexpr (kLevel == 0) {
    return _mm512_permutex2var_ps(_mm512_load_ps(values), at, _mm512_load_ps(values + kLanes));
  } else {
    const __mmask16 high = _mm512_test_epi32_mask(at, _mm512_set1_epi32(16 << kLevel));
    return _mm512_mask_blend_ps(high, pick<kLevel - 1>(values, at), pick<kLevel - 1>(values + (kLanes << kLevel), at));
  }
}

template <int kBits>
RDK_INLINE F lookup(const Codebook& book, U index) {
  const __m512i at = (__m512i)index;
  if constexpr (kBits <= 4) return (F)_mm512_permutexvar_ps(at, _mm512_load_ps(book.values));
  return (F)pick<std::clamp(kBits - 5, 0, 3)>(book.values, at);
}
#elif defined(__AVX2__) && !defined(RDK_LANES)
#define RDK_PERMUTES
// Of 2^kLevel registers from `values` on, the one that bits 3 and above name, then its entry.
template <int kLevel>
RDK_INLINE __m256 pick(const float* values, __m256i at) {
  if constexpr (kLevel == 0) {
    return _mm256_permutevar8x32_ps(_mm256_load_ps(values), at);
  } else {
    const __m256 high = (__m256)_mm256_slli_epi32(at, 29 - kLevel);
    return _mm256_blendv_ps(pick<kLevel - 1>(values, at), pick<kLevel - 1>(values + (kLanes << (kLevel - 1)), at),
                            high);
  }
}

template <int kBits>
RDK_INLINE F lookup(const Codebook& book, U index) {
  const __m256i at = (__m256i)index;
  if constexpr (kBits <= 5) return (F)pick<std::clamp(kBits - 3, 0, 2)>(book.values, at);
  return (F)_mm256_i32gather_ps(book.values, _mm256_and_si256(at, _mm256_set1_epi32(255)), 4);
}
#endif

// Sixteen bytes; GCC would widen them in several steps.
RDK_INLINE U16 widen16(const uint8_t* p) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  return {(U)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__AVX2__) && !defined(RDK_LANES)
  return map16([=](int i) {
    return (U)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * kLanes)));
  });
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
  return map16([=](int i) { return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p + i * kLanes), U); });
#endif
}

// Strips of packed indices, in blocks of eight inputs; the last block is filled up.
struct Packed {
  const uint8_t* data;
  int64_t out, in;
  int bits;

  int64_t strip_bytes() const { return (in + kBlockInputs - 1) / kBlockInputs * bits * kVec; }
  const uint8_t* block(int64_t strip, int64_t k) const {
    return data + strip * strip_bytes() + k / kBlockInputs * bits * kVec;
  }
};

// The weights of a block, [input][16 outputs].
template <int kBits>
RDK_INLINE void decode_block(const uint8_t* block, const Codebook& book, V16* w) {
  static_assert(kBlockInputs == 8);
#if defined(RDK_PERMUTES)
  constexpr bool kByte = kBits == 8, k4 = !kByte && kBits & 4, k2 = !kByte && kBits & 2, k1 = !kByte && kBits & 1;
  constexpr int kAbove4 = k4 ? 4 : 0, kAbove2 = kAbove4 + (k2 ? 2 : 0);
  const uint8_t *const twos = block + (k4 ? 4 * kVec : 0), *const ones = twos + (k2 ? 2 * kVec : 0);
  U16 four, two, one;
  if constexpr (k1) one = widen16(ones);
  RDK_UNROLL for (int j = 0; j < kBlockInputs; ++j) {
    if (kByte) four = widen16(block + j * kVec);
    if (k4 && j % 2 == 0) four = widen16(block + j / 2 * kVec);
    if (k2 && j % 4 == 0) two = widen16(twos + j / 4 * kVec);
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
      U at{};  // with what stands above the last field left in: the lookup does not see it
      if constexpr (kByte) at = four.r[i];
      if constexpr (k4) at = four.r[i] >> 4 * (j % 2);
      if constexpr (k4 && (k2 || k1)) at &= 15u;
      if constexpr (k2 && k1) at |= (two.r[i] >> 2 * (j % 4) & 3u) << kAbove4;
      if constexpr (k2 && !k1) at |= two.r[i] >> 2 * (j % 4) << kAbove4;
      if constexpr (k1) at |= one.r[i] >> j << kAbove2;
      w[j].r[i] = lookup<kBits>(book, at);
    }
  }
#else
  float* const to = reinterpret_cast<float*>(w);
  int above = 0;
  const int bits = book.bits;
  alignas(64) uint8_t index[kBlockInputs * kVec] = {};
  for (const int field : {bits & 8, bits & 4, bits & 2, bits & 1}) {
    if (!field) continue;
    const int each = 8 / field;
    for (int j = 0; j < kBlockInputs; ++j) {
      const uint8_t* const group = block + j / each * kVec;
      for (int l = 0; l < kVec; ++l) index[j * kVec + l] |= uint8_t(group[l] >> field * (j % each) << above);
    }
    for (int n = 0; n < kBlockInputs * kVec && above + field < 8; ++n) index[n] &= uint8_t((1 << (above + field)) - 1);
    block += field * kVec, above += field;
  }
  for (int n = 0; n < kBlockInputs * kVec; ++n) to[n] = book.values[index[n]];
#endif
}

// Inputs [k0, k0 + depth) of a strip as [depth][16] fp32; k0 a multiple of 8.
template <int kBits>
void decode(const Codebook& book, const Packed& packed, int64_t strip, int64_t k0, int64_t depth, float* to) {
  const uint8_t* block = packed.block(strip, k0);
  for (int64_t k = 0; k < depth; k += kBlockInputs, block += packed.bits * kVec) {
    V16 w[kBlockInputs];
    decode_block<kBits>(block, book, w);
    if (k + kBlockInputs <= depth) {
      RDK_UNROLL for (int j = 0; j < kBlockInputs; ++j) store16(to + (k + j) * kVec, w[j]);
    } else {
      std::copy_n(reinterpret_cast<const float*>(w), (depth - k) * kVec, to + k * kVec);
    }
  }
}

// One row of x times a strip: sixteen outputs, decoded in registers.
template <int kBits>
V16 dot(const Codebook& book, const Packed& packed, int64_t strip, const float* x) {
  constexpr int64_t kFold = 512;                                // inputs that add up in one go
  constexpr int kChains = kRegs == 1 ? 4 : kRegs == 2 ? 2 : 1;  // in as many chains: they hide the adder's latency
  const uint8_t* block = packed.block(strip, 0);
  V16 total{};
  for (int64_t k = 0; k < packed.in;) {
    V16 sums[kChains] = {};
    for (const int64_t end = std::min(packed.in, k + kFold); k < end; k += kBlockInputs) {
      V16 w[kBlockInputs];
      decode_block<kBits>(block, book, w);
      block += packed.bits * kVec;
      if (k + kBlockInputs <= end) {
        RDK_UNROLL for (int j = 0; j < kBlockInputs; ++j) {
          const F factor = splat(x[k + j]);
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) sums[j % kChains].r[i] += factor * w[j].r[i];
        }
      } else {
        const float* const rest = reinterpret_cast<const float*>(w);
        for (int64_t j = 0; j < end - k; ++j) {
          const V16 own = load16(rest + j * kVec);
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) sums[0].r[i] += splat(x[k + j]) * own.r[i];
        }
      }
    }
    RDK_UNROLL for (int c = 1; c < kChains; ++c) sums[0] = add(sums[0], sums[c]);
    total = add(total, sums[0]);
  }
  return total;
}

// Both for indices of a number of bits.
struct Decoder {
  void (*decode)(const Codebook&, const Packed&, int64_t strip, int64_t k0, int64_t depth, float* to);
  V16 (*dot)(const Codebook&, const Packed&, int64_t strip, const float* x);

  static Decoder of(int bits) {
#if defined(RDK_PERMUTES)
    static constexpr Decoder all[] = {{rdk::decode<1>, rdk::dot<1>}, {rdk::decode<2>, rdk::dot<2>},
                                      {rdk::decode<3>, rdk::dot<3>}, {rdk::decode<4>, rdk::dot<4>},
                                      {rdk::decode<5>, rdk::dot<5>}, {rdk::decode<6>, rdk::dot<6>},
                                      {rdk::decode<7>, rdk::dot<7>}, {rdk::decode<8>, rdk::dot<8>}};
    return all[bits - 1];
#else
    return (void)bits, Decoder{rdk::decode<0>, rdk::dot<0>};
#endif
  }
};

}  // namespace rdk
