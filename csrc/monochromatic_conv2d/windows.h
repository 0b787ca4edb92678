// The product of a colour's windows with its filters: C[pixel, 16 or 8] = sum over kernel rows and columns of
// line[pixel * stride + column] * filter. The width of the kernel is known when it is compiled, so that a kernel row
// is straight code.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "common/vec.h"

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

// N outputs of one colour, in registers of at most N lanes.
template <int N>
struct Outputs {
  static constexpr int kWidth = kLanes < N ? kLanes : N, kCount = N / kWidth, kRows = kWindowRegs / kCount;
  typedef float Vec __attribute__((vector_size(4 * kWidth)));
  template <int... I>
  static RDK_INLINE Vec splat(float x, std::integer_sequence<int, I...>) {
    return Vec{((void)I, x)...};
  }
  typedef float Memory __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
};

struct Windows {
  const float* const* lines;  // of the kernel rows that exist, each at the first pixel's first column
  int64_t count;              // of those rows
  int64_t stride, dilation;   // between two pixels, between two columns
  int64_t kw;
  const float* filters;  // [row][kw][N]
};

// Pixels [first, first + R); KW is the kernel's width, or 0 for any.
template <int N, int R, int KW>
void window_block(const Windows& w, int64_t first, float* c, int64_t c_row) {
  using O = Outputs<N>;
  constexpr int kBases = (R + 2) / 3;
  typename O::Vec acc[R][O::kCount] = {};
  const float* b = w.filters;
  const int64_t stride = w.stride, step = KW ? 1 : w.dilation, width = KW ? KW : w.kw;
  for (int64_t i = 0; i < w.count; ++i) {
    const float* base[kBases];
    RDK_UNROLL for (int j = 0; j < kBases; ++j) {
      base[j] = w.lines[i] + (first + 3 * j) * stride;
      asm("" : "+r"(base[j]));  // else GCC derives all rows from one base, and spills
    }
    const auto column = [&](int64_t k) RDK_LAMBDA {
      typename O::Vec f[O::kCount];
      RDK_UNROLL for (int l = 0; l < O::kCount; ++l) f[l] = reinterpret_cast<const typename O::Memory*>(b)[l];
      RDK_UNROLL for (int r = 0; r < R; ++r) {
        const typename O::Vec x =
            O::splat(base[r / 3][r % 3 * stride + k], std::make_integer_sequence<int, O::kWidth>{});
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
    RDK_UNROLL for (int l = 0; l < O::kCount; ++l) {
      reinterpret_cast<typename O::Memory*>(c + (first + r) * c_row)[l] = acc[r][l];
    }
  }
}

using WindowBlock = void (*)(const Windows&, int64_t, float*, int64_t);

// A width that is known: straight code for a few heights only; the last block may begin within the one before it.
template <int N, int KW>
void window_width(const Windows& w, int64_t pixels, float* c, int64_t c_row) {
  constexpr int kMost = Outputs<N>::kRows, kMiddle = std::max(1, kMost / 2), kQuarter = std::max(1, kMost / 4);
  static constexpr std::array<std::pair<int64_t, WindowBlock>, 3> kernels = {
      {{kMost, window_block<N, kMost, KW>},
       {kMiddle, window_block<N, kMiddle, KW>},
       {kQuarter, window_block<N, kQuarter, KW>}}};
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

template <int N, int... I>
void window_any(const Windows& w, int64_t pixels, float* c, int64_t c_row, std::integer_sequence<int, I...>) {
  static constexpr std::array<WindowBlock, sizeof...(I)> kernels = {window_block<N, I + 1, 0>...};
  constexpr int64_t most = sizeof...(I);
  const int64_t blocks = (pixels + most - 1) / most;
  for (int64_t block = 0, first = 0; block < blocks; ++block) {
    const int64_t height = (pixels - first + blocks - block - 1) / (blocks - block);
    kernels[size_t(height - 1)](w, first, c, c_row);
    first += height;
  }
}

template <int N>
void window_product(const Windows& w, int64_t pixels, float* c, int64_t c_row) {
  if (w.dilation == 1 && pixels >= std::max(1, Outputs<N>::kRows / 4)) {
    if (w.kw == 3) return window_width<N, 3>(w, pixels, c, c_row);
    if (w.kw == 5) return window_width<N, 5>(w, pixels, c, c_row);
    if (w.kw == 7) return window_width<N, 7>(w, pixels, c, c_row);
    if (w.kw == 11) return window_width<N, 11>(w, pixels, c, c_row);
  }
  window_any<N>(w, pixels, c, c_row, std::make_integer_sequence<int, Outputs<N>::kRows>{});
}

}  // namespace rdk
