// Rows of x as rows of colours: line k is sum over channels c of mix[k][c] * x[c].
#pragma once

#include <cstdint>

#include "common/vec.h"

namespace rdk {

typedef float Pixels16 __attribute__((vector_size(64)));  // sixteen floats whatever the registers: for shuffles
typedef float Pixels16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Places16 __attribute__((vector_size(64)));

// Lanes of a, and of b from sixteen on.
RDK_INLINE Pixels16 pick(Pixels16 a, Pixels16 b, Places16 at) {
#if defined(__clang__)
  Pixels16 v;
  for (int l = 0; l < 16; ++l) v[l] = at[l] < 16 ? a[at[l]] : b[at[l] - 16];
  return v;
#else
  return __builtin_shuffle(a, b, at);
#endif
}

// Sixteen pixels of three channels side by side -> the three channels.
RDK_INLINE void split3(const float* from, float* r, float* g, float* b) {
  const auto load = [&](int i) { return (Pixels16) * reinterpret_cast<const Pixels16u*>(from + 16 * i); };
  const Pixels16 p = load(0), q = load(1), s = load(2);
  const Pixels16 r0 = pick(p, q, Places16{0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0});
  const Pixels16 g0 = pick(p, q, Places16{1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0});
  const Pixels16 b0 = pick(p, q, Places16{2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0});
  *reinterpret_cast<Pixels16u*>(r) = pick(r0, s, Places16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29});
  *reinterpret_cast<Pixels16u*>(g) = pick(g0, s, Places16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30});
  *reinterpret_cast<Pixels16u*>(b) = pick(b0, s, Places16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31});
}

// `width` pixels as planes, `apart` one from the next.
template <class T>
void split_channels(const T* from, int64_t width, int64_t channels, int64_t w_stride, int64_t c_stride, float* planes,
                    int64_t apart) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; channels == 3 && c_stride == 1 && w_stride == 3 && i + kVec <= width; i += kVec) {
      split3(from + 3 * i, planes + i, planes + apart + i, planes + 2 * apart + i);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = i; j < width; ++j) planes[c * apart + j] = to_float(from[j * w_stride + c * c_stride]);
  }
}

// One colour's line from the planes, or the lines of P colours pixel by pixel; `mix` has a colour after the other.
template <int P>
void mix_line(const float* planes, int64_t apart, int64_t width, int64_t channels, const float* mix, float* to) {
  int64_t i = 0;
  for (; i + kVec <= width; i += kVec) {
    V16 sum[P] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const V16 v = load16(planes + c * apart + i);
      RDK_UNROLL for (int k = 0; k < P; ++k) {
        RDK_UNROLL for (int l = 0; l < kRegs; ++l) sum[k].r[l] += splat(mix[k * channels + c]) * v.r[l];
      }
    }
    if constexpr (P == 1) {
      store16(to + i, sum[0]);
    } else {
      alignas(64) float line[2][kVec];
      store16(line[0], sum[0]), store16(line[1], sum[1]);
      const Pixels16 a = *reinterpret_cast<const Pixels16u*>(line[0]), b = *reinterpret_cast<const Pixels16u*>(line[1]);
      *reinterpret_cast<Pixels16u*>(to + 2 * i) =
          pick(a, b, Places16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
      *reinterpret_cast<Pixels16u*>(to + 2 * i + kVec) =
          pick(a, b, Places16{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
    }
  }
  for (; i < width; ++i) {
    RDK_UNROLL for (int k = 0; k < P; ++k) {
      float sum = 0;
      for (int64_t c = 0; c < channels; ++c) sum += mix[k * channels + c] * planes[c * apart + i];
      to[P * i + k] = sum;
    }
  }
}

}  // namespace rdk
