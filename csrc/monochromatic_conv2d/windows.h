// The product of a colour's windows with its filters: C[pixel, 16 or 8] = sum over kernel rows and columns of
// line[pixel * stride + column] * filter. Two colours of at most eight outputs each run as one of sixteen: their lines
// and filters alternate, so that one load of two floats serves a whole register. The width of the kernel is known when
// it is compiled, so that a kernel row is straight code.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "common/vec.h"
#include "monochromatic_conv2d/colours.h"

namespace rdk {

#if defined(__AVX512F__) || (defined(RDK_LANES) && RDK_LANES == 16)
constexpr int kWindowRegs = 28;  // registers that accumulate
#elif defined(__AVX2__)
constexpr int kWindowRegs = 12;
#elif defined(__aarch64__)
constexpr int kWindowRegs = 24;
#else
constexpr int kWindowRegs = 8;
#endif

// N outputs of P colours, in registers of at most N lanes; eight for two colours: a tenth faster (Zen 4).
template <int N, int P>
struct Outputs {
  static constexpr int kWidth = std::min(kLanes, P == 2 ? 8 : N), kCount = N / kWidth, kRows = kWindowRegs / kCount;
  typedef float Vec __attribute__((vector_size(4 * kWidth)));
  template <int... I>
  static RDK_INLINE Vec splat(float x, std::integer_sequence<int, I...>) {
    return Vec{((void)I, x)...};
  }
  typedef float Memory __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
  typedef double Pairs __attribute__((vector_size(4 * kWidth)));
  template <int... I>
  static RDK_INLINE Vec splat_pair(double x, std::integer_sequence<int, I...>) {
    return (Vec)Pairs{((void)I, x)...};
  }
  // The floats of one column, once for every output.
  static RDK_INLINE Vec column(const float* x) {
    if constexpr (P == 1) return splat(*x, std::make_integer_sequence<int, kWidth>{});
    typedef double Unaligned __attribute__((aligned(4), may_alias));
    return splat_pair(*reinterpret_cast<const Unaligned*>(x), std::make_integer_sequence<int, kWidth / 2>{});
  }
};

// Sixteen alternating outputs -> eight of each colour; the second's go over what the first's eight write past its own.
RDK_INLINE void put_pair(const float* both, float* first, float* second) {
  typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
  const Pixels16 v = (Pixels16) * reinterpret_cast<const Pixels16u*>(both);
  const Pixels16 apart = pick(v, v, Places16{0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15});
  alignas(64) float halves[16];
  *reinterpret_cast<Pixels16u*>(halves) = apart;
  *reinterpret_cast<Eight*>(first) = *reinterpret_cast<const Eight*>(halves);
  *reinterpret_cast<Eight*>(second) = *reinterpret_cast<const Eight*>(halves + 8);
}

struct Windows {
  const float* const* lines;  // of the kernel rows that exist, each at the first pixel's first column
  int64_t count;              // of those rows
  int64_t stride, dilation;   // between two pixels, between two columns
  int64_t kw;
  const float* filters;  // [row][kw][N]
  int64_t second;        // where the outputs of a pair's second colour begin
};

// Pixels [first, first + R); KW is the kernel's width, or 0 for any.
template <int N, int P, int R, int KW>
void window_block(const Windows& w, int64_t first, float* c, int64_t c_row) {
  using O = Outputs<N, P>;
  constexpr int kBases = (R + 2) / 3;
  typename O::Vec acc[R][O::kCount] = {};
  const float* b = w.filters;
  const int64_t stride = w.stride, step = KW ? 1 : w.dilation, width = KW ? KW : w.kw;
  for (int64_t i = 0; i < w.count; ++i) {
    const float* base[kBases];
    RDK_UNROLL for (int j = 0; j < kBases; ++j) {
      base[j] = w.lines[i] + (first + 3 * j) * stride * P;
      asm("" : "+r"(base[j]));  // else GCC derives all rows from one base, and spills
    }
    const auto column = [&](int64_t k) RDK_LAMBDA {
      typename O::Vec f[O::kCount];
      RDK_UNROLL for (int l = 0; l < O::kCount; ++l) f[l] = reinterpret_cast<const typename O::Memory*>(b)[l];
      RDK_UNROLL for (int r = 0; r < R; ++r) {
        const typename O::Vec x = O::column(base[r / 3] + (r % 3 * stride + k) * P);
        RDK_UNROLL for (int l = 0; l < O::kCount; ++l) acc[r][l] += x * f[l];
      }
      b += N;
    };
    if constexpr (KW > 0) {
      RDK_UNROLL for (int k = 0; k < KW; ++k) column(k);
    } else {
      for (int64_t k = 0; k < width; ++k) column(k * step);
    }
  }
  RDK_UNROLL for (int r = 0; r < R; ++r) {
    float* const to = c + (first + r) * c_row;
    if constexpr (P == 2) {
      float both[N];
      RDK_UNROLL for (int l = 0; l < O::kCount; ++l) reinterpret_cast<typename O::Memory*>(both)[l] = acc[r][l];
      put_pair(both, to, to + w.second);
    } else {
      RDK_UNROLL for (int l = 0; l < O::kCount; ++l) reinterpret_cast<typename O::Memory*>(to)[l] = acc[r][l];
    }
  }
}

using WindowBlock = void (*)(const Windows&, int64_t, float*, int64_t);

// A width that is known: straight code for a few heights only; the last block may begin within the one before it.
template <int N, int P, int KW>
void window_width(const Windows& w, int64_t pixels, float* c, int64_t c_row) {
  constexpr int kMost = Outputs<N, P>::kRows, kMiddle = std::max(1, kMost / 2), kQuarter = std::max(1, kMost / 4);
  static constexpr std::array<std::pair<int64_t, WindowBlock>, 3> kernels = {
      {{kMost, window_block<N, P, kMost, KW>},
       {kMiddle, window_block<N, P, kMiddle, KW>},
       {kQuarter, window_block<N, P, kQuarter, KW>}}};
  auto best = kernels.back();
  int64_t least = pixels * 2 + kMost;
  for (const auto& kernel : kernels) {
    const int64_t made = (pixels + kernel.first - 1) / kernel.first * kernel.first;
    if (kernel.first <= pixels && made < least) best = kernel, least = made;
  }
  for (int64_t first = 0; first < pixels; first += best.first) {
    best.second(w, std::min(first, pixels - best.first), c, c_row);
  }
}

template <int N, int P, int... I>
void window_any(const Windows& w, int64_t pixels, float* c, int64_t c_row, std::integer_sequence<int, I...>) {
  static constexpr std::array<WindowBlock, sizeof...(I)> kernels = {window_block<N, P, I + 1, 0>...};
  constexpr int64_t most = sizeof...(I);
  const int64_t blocks = (pixels + most - 1) / most;
  for (int64_t block = 0, first = 0; block < blocks; ++block) {
    const int64_t height = (pixels - first + blocks - block - 1) / (blocks - block);
    kernels[size_t(height - 1)](w, first, c, c_row);
    first += height;
  }
}

template <int N, int P = 1>
void window_product(const Windows& w, int64_t pixels, float* c, int64_t c_row) {
  if (w.dilation == 1 && pixels >= std::max(1, Outputs<N, P>::kRows / 4)) {
    if (w.kw == 3) return window_width<N, P, 3>(w, pixels, c, c_row);
    if (w.kw == 5) return window_width<N, P, 5>(w, pixels, c, c_row);
    if (w.kw == 7) return window_width<N, P, 7>(w, pixels, c, c_row);
    if (w.kw == 11) return window_width<N, P, 11>(w, pixels, c, c_row);
  }
  window_any<N, P>(w, pixels, c, c_row, std::make_integer_sequence<int, Outputs<N, P>::kRows>{});
}

}  // namespace rdk
