// Sixteen fp32 lanes, the width of the map's granule vector, as one, two or four registers of the target.
// GCC vector types, so that one source serves AVX-512, AVX2, SSE2 and NEON; intrinsics only where types cannot say it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RDK_INLINE inline __attribute__((always_inline))
#define RDK_UNROLL _Pragma("GCC unroll 32")
#define RDK_LAMBDA __attribute__((always_inline))

namespace rdk {

#if defined(RDK_LANES)  // a test build runs the 16-lane source on any machine
constexpr int kLanes = RDK_LANES;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kVec = 16;
constexpr int kRegs = kVec / kLanes;

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef float Fu __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Uu __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Hu __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

struct V16 {
  F r[kRegs];
};
struct U16 {
  U r[kRegs];
};

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <int... I>
RDK_INLINE F splat_lanes(float x, std::integer_sequence<int, I...>) {
  return F{((void)I, x)...};
}
RDK_INLINE F splat(float x) { return splat_lanes(x, std::make_integer_sequence<int, kLanes>{}); }
RDK_INLINE U splat(uint32_t x) { return U{} + x; }
RDK_INLINE U bits(F x) { return (U)x; }
RDK_INLINE F floats(U x) { return (F)x; }

RDK_INLINE F load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
RDK_INLINE U load(const uint32_t* p) { return *reinterpret_cast<const Uu*>(p); }
RDK_INLINE void store(float* p, F x) { *reinterpret_cast<Fu*>(p) = x; }
RDK_INLINE void store(uint32_t* p, U x) { *reinterpret_cast<Uu*>(p) = x; }

RDK_INLINE U widen(const uint16_t* p) { return __builtin_convertvector(*reinterpret_cast<const Hu*>(p), U); }

RDK_INLINE F load(const BFloat16* p) { return floats(widen(&p->bits) << 16); }

// Half to float with integers; a subnormal by one subtraction of normal numbers, so that no flush-to-zero mode harms
// it.
RDK_INLINE F half_to_float(U h) {
  const U magnitude = (h & 0x7fffu) << 13, rebias = splat(0x38000000u);
  const U normal = magnitude + rebias + ((U)(magnitude >= 0x0f800000u) & rebias);  // twice for inf and NaN
  const U subnormal = bits(floats(magnitude + 0x38800000u) - splat(0x1p-14f));
  const U tiny = (U)(magnitude < 0x00800000u);
  return floats((tiny & subnormal) | (~tiny & normal) | (h & 0x8000u) << 16);
}

RDK_INLINE F load(const Half* p) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && !defined(RDK_LANES)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return half_to_float(widen(&p->bits));
#endif
}

RDK_INLINE float to_float(float x) { return x; }
RDK_INLINE float to_float(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}
RDK_INLINE float to_float(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return half_to_float(splat(uint32_t(x.bits)))[0];
#endif
}

// Round to nearest even; NaN stays a NaN.
RDK_INLINE void convert(float x, float* p) { *p = x; }
RDK_INLINE void convert(float x, BFloat16* p) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  p->bits = x != x ? uint16_t(u >> 16 | 0x40) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
RDK_INLINE void convert(float x, Half* p) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    p->bits = uint16_t(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    p->bits = uint16_t(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // subnormal half: the float adder does the rounding
    float f, half_ulp_align = 0.5f;
    std::memcpy(&f, &magnitude, 4);
    f += half_ulp_align;
    uint32_t rounded;
    std::memcpy(&rounded, &f, 4);
    p->bits = uint16_t(sign | (rounded - 0x3f000000));
  } else {
    p->bits = uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
  }
}

template <class T>
RDK_INLINE V16 load16(const T* p) {
  V16 v;
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) v.r[i] = load(p + i * kLanes);
  return v;
}
RDK_INLINE void store16(float* p, V16 v) { RDK_UNROLL for (int i = 0; i < kRegs; ++i) store(p + i * kLanes, v.r[i]); }
RDK_INLINE U16 load16(const uint32_t* p) {
  U16 v;
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) v.r[i] = load(p + i * kLanes);
  return v;
}
RDK_INLINE V16 add(V16 a, V16 b) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) a.r[i] += b.r[i];
  return a;
}
template <class Fn>
RDK_INLINE U16 map16(Fn fn) {
  U16 v;
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) v.r[i] = fn(i);
  return v;
}

alignas(64) constexpr uint32_t kIota[kVec] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
RDK_INLINE U16 iota16(uint32_t first) {
  return map16([=](int i) { return load(kIota + i * kLanes) + first; });
}

// Zero in the lanes from n on.
RDK_INLINE V16 keep_first(V16 v, int n) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    v.r[i] = floats(bits(v.r[i]) & (U)(load(kIota + i * kLanes) < uint32_t(n)));
  }
  return v;
}

template <int... I>
RDK_INLINE F shuffle(F a, F b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  typedef int32_t Index __attribute__((vector_size(4 * kLanes)));
  return __builtin_shuffle(a, b, Index{I...});
#endif
}

// kLanes x kLanes in registers: 32-bit then 64-bit interleaves inside 128-bit lanes, then the lanes themselves.
RDK_INLINE void transpose_square(F* r) {
  constexpr int L = kLanes;
  F t[L];
  if constexpr (L == 4) {
    RDK_UNROLL for (int i = 0; i < 2; ++i) {
      t[2 * i] = shuffle<0, 4, 1, 5>(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = shuffle<2, 6, 3, 7>(r[2 * i], r[2 * i + 1]);
    }
    RDK_UNROLL for (int i = 0; i < 2; ++i) {
      r[2 * i] = shuffle<0, 1, 4, 5>(t[i], t[i + 2]);
      r[2 * i + 1] = shuffle<2, 3, 6, 7>(t[i], t[i + 2]);
    }
  } else if constexpr (L == 8) {
    RDK_UNROLL for (int i = 0; i < 4; ++i) {
      t[2 * i] = shuffle<0, 8, 1, 9, 4, 12, 5, 13>(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = shuffle<2, 10, 3, 11, 6, 14, 7, 15>(r[2 * i], r[2 * i + 1]);
    }
    RDK_UNROLL for (int i = 0; i < 2; ++i) {
      RDK_UNROLL for (int j = 0; j < 2; ++j) {
        r[4 * i + 2 * j] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(t[4 * i + j], t[4 * i + j + 2]);
        r[4 * i + 2 * j + 1] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(t[4 * i + j], t[4 * i + j + 2]);
      }
    }
    RDK_UNROLL for (int j = 0; j < 4; ++j) t[j] = r[j];
    RDK_UNROLL for (int j = 0; j < 4; ++j) {
      r[j] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(t[j], r[4 + j]);
      r[4 + j] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(t[j], r[4 + j]);
    }
  } else {
    RDK_UNROLL for (int i = 0; i < 8; ++i) {
      t[2 * i] = shuffle<0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29>(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = shuffle<2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31>(r[2 * i], r[2 * i + 1]);
    }
    RDK_UNROLL for (int i = 0; i < 4; ++i) {
      RDK_UNROLL for (int j = 0; j < 2; ++j) {
        const F a = t[4 * i + j], b = t[4 * i + j + 2];
        r[4 * i + 2 * j] = shuffle<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(a, b);
        r[4 * i + 2 * j + 1] = shuffle<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(a, b);
      }
    }
    RDK_UNROLL for (int i = 0; i < 2; ++i) {
      RDK_UNROLL for (int j = 0; j < 4; ++j) {
        const F a = r[8 * i + j], b = r[8 * i + 4 + j];
        t[8 * i + j] = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(a, b);
        t[8 * i + 4 + j] = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(a, b);
      }
    }
    RDK_UNROLL for (int j = 0; j < 8; ++j) {
      r[j] = shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(t[j], t[8 + j]);
      r[8 + j] = shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(t[j], t[8 + j]);
    }
  }
}

RDK_INLINE void transpose16(V16* rows) {
  F in[kRegs][kRegs][kLanes];  // [block row][block column][row]
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    RDK_UNROLL for (int j = 0; j < kRegs; ++j) {
      RDK_UNROLL for (int l = 0; l < kLanes; ++l) in[i][j][l] = rows[i * kLanes + l].r[j];
      transpose_square(in[i][j]);
    }
  }
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
    RDK_UNROLL for (int j = 0; j < kRegs; ++j) {
      RDK_UNROLL for (int l = 0; l < kLanes; ++l) rows[j * kLanes + l].r[i] = in[i][j][l];
    }
  }
}

}  // namespace rdk
