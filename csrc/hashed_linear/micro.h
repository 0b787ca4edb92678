// The register-blocked product every many-rows path ends in: C[R, 16 NJ] += A[R, depth] * B[depth, 16 NJ].
// B stands in strips [depth][16]; A is either R rows of a matrix or packed [depth][R].
#pragma once

#include "common/vec.h"

namespace rdk {

#if defined(__AVX512F__) || (defined(RDK_LANES) && RDK_LANES == 16)
constexpr int kRows = 12, kStrips = 2;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kRows = 6, kStrips = 1;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kRows = 6, kStrips = 1;  // 24 of 32
#else
constexpr int kRows = 2, kStrips = 1;  // 8 of 16
#endif

constexpr int64_t kDepth = 256;  // of one product: a strip of B is 16 KiB and stays in L1; also one chain of roundings

struct Micro {
  const float* a;
  int64_t a_row;  // distance of two rows of A; unused when packed
  const float* b;
  int64_t b_strip;  // distance of two strips of B
  int64_t depth;
  float* c;
  int64_t c_row;
  bool accumulate;
};

template <int R, int NJ, bool kPacked>
void micro(const Micro& m) {
  V16 acc[R][NJ] = {};  // each depth block from zero: the chain of roundings stays short
  const float *a = m.a, *b = m.b;
  const int64_t a_row = kPacked ? 1 : m.a_row, a_step = kPacked ? R : 1, b_strip = m.b_strip;
  const float* const end = b + m.depth * kVec;
  for (; b != end; b += kVec, a += a_step) {
    V16 w[NJ];
    RDK_UNROLL for (int j = 0; j < NJ; ++j) w[j] = load16(b + j * b_strip);
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      const F x = splat(a[r * a_row]);
      RDK_UNROLL for (int j = 0; j < NJ; ++j) {
        RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[r][j].r[i] += x * w[j].r[i];
      }
    }
  }
  RDK_UNROLL for (int r = 0; r < R; ++r) {
    RDK_UNROLL for (int j = 0; j < NJ; ++j) {
      float* c = m.c + r * m.c_row + kVec * j;
      store16(c, m.accumulate ? add(load16(c), acc[r][j]) : acc[r][j]);
    }
  }
}

// `rows` <= kRows and `strips` <= kStrips, each combination its own code.
template <bool kPacked, int R = kRows, int NJ = kStrips>
RDK_INLINE void micro_dispatch(int rows, int strips, const Micro& m) {
  if constexpr (NJ > 1) {
    if (strips < NJ) return micro_dispatch<kPacked, R, NJ - 1>(rows, strips, m);
  }
  if constexpr (R > 1) {
    if (rows < R) return micro_dispatch<kPacked, R - 1, NJ>(rows, strips, m);
  }
  micro<R, NJ, kPacked>(m);
}

}  // namespace rdk
