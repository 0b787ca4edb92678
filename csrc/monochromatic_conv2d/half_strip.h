// The product for eight columns of B: what a colour with few outputs leaves. As product.h, half a strip wide.
#pragma once

#include "common/product.h"

namespace rdk {

constexpr int kHalf = 8;
constexpr int kHalfLanes = kLanes < kHalf ? kLanes : kHalf;
constexpr int kHalfRegs = kHalf / kHalfLanes;
typedef float HalfF __attribute__((vector_size(4 * kHalfLanes)));
typedef float HalfFu __attribute__((vector_size(4 * kHalfLanes), aligned(4), may_alias));

#if defined(__AVX512F__) || (defined(RDK_LANES) && RDK_LANES == 16)
constexpr int kHalfRows = 24;
#elif defined(__AVX2__)
constexpr int kHalfRows = 12;
#elif defined(__aarch64__)
constexpr int kHalfRows = 10;
#else
constexpr int kHalfRows = 4;
#endif

template <int R>
void half_block(const Product& p, int64_t row, float* c, int64_t c_row) {
  HalfF acc[R][kHalfRegs] = {};
  const float* b = p.b;
  constexpr int kBases = (R + 2) / 3;
  for (int s = 0; s < p.count; ++s) {
    const int64_t a_row = p.segments[s].row, depth = p.segments[s].depth;
    const float* base[kBases];
    RDK_UNROLL for (int i = 0; i < kBases; ++i) {
      base[i] = p.segments[s].a + (row + 3 * i) * a_row;
      asm("" : "+r"(base[i]));
    }
    for (int64_t k = 0; k < depth; ++k, b += kHalf) {
      HalfF w[kHalfRegs];
      RDK_UNROLL for (int i = 0; i < kHalfRegs; ++i) w[i] = reinterpret_cast<const HalfFu*>(b)[i];
      RDK_UNROLL for (int r = 0; r < R; ++r) {
        const HalfF x = HalfF{} + base[r / 3][r % 3 * a_row + k];
        RDK_UNROLL for (int i = 0; i < kHalfRegs; ++i) acc[r][i] += x * w[i];
      }
    }
  }
  RDK_UNROLL for (int r = 0; r < R; ++r) {
    RDK_UNROLL for (int i = 0; i < kHalfRegs; ++i) {
      reinterpret_cast<HalfFu*>(c + (row + r) * c_row)[i] = acc[r][i];
    }
  }
}

template <int... I>
void half_dispatch(int64_t height, const Product& p, int64_t row, float* c, int64_t c_row,
                   std::integer_sequence<int, I...>) {
  static constexpr std::array<void (*)(const Product&, int64_t, float*, int64_t), sizeof...(I)> kernels = {
      half_block<I + 1>...};
  kernels[size_t(height - 1)](p, row, c, c_row);
}

// All `rows` of the product by eight columns.
inline void half_product(const Product& p, int64_t rows, float* c, int64_t c_row) {
  const int64_t blocks = (rows + kHalfRows - 1) / kHalfRows;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t height = (rows - row + blocks - block - 1) / (blocks - block);
    half_dispatch(height, p, row, c, c_row, std::make_integer_sequence<int, kHalfRows>{});
    row += height;
  }
}

}  // namespace rdk
