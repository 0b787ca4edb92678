// The register-blocked product of the low-rank chains: C[M, 16 strips] = sum of A_s[M, depth_s] * B_s over segments s.
// A is read where it stands, B in strips [depth][16], and what becomes of a block of C is the sink's business.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "common/vec.h"

namespace rdk {

// A block of C in registers: rows by strips of sixteen columns.
#if defined(__AVX512F__) || (defined(RDK_LANES) && RDK_LANES == 16)
constexpr int kBlockRows = 14, kBlockStrips = 2;  // 28 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kBlockRows = 6, kBlockStrips = 1;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kBlockRows = 6, kBlockStrips = 1;  // 24 of 32
#else
constexpr int kBlockRows = 2, kBlockStrips = 1;  // 8 of 16
#endif

constexpr int64_t kChain = 512;  // roundings in a row: longer sums are made of sums of this many products

inline int64_t ceil_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t strips_of(int64_t columns) { return (columns + kVec - 1) / kVec; }

struct Segment {
  const float* a;  // its first row
  int64_t row;     // distance of two rows
  int64_t depth;
};

struct Product {
  const Segment* segments;
  int count;
  const float* b;   // strip 0: the segments' rows one after another
  int64_t b_strip;  // distance of two strips
  Segment next{};   // what A will be soon, with as many rows, or nothing: it is fetched while this is computed
};

RDK_INLINE void fetch(const float* p, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(p + i, 0, 2);
}

template <int R, int NJ>
struct Block {
  V16 v[R][NJ];
};

// How many sums each element is made of: with few rows registers are free, and several chains hide the adder's latency
// and round less.
template <int R, int NJ, bool kSplit>
constexpr int kSums = !kSplit || 2 * R * NJ > kBlockRows* kBlockStrips ? 1
                      : 4 * R * NJ > kBlockRows* kBlockStrips          ? 2
                                                                       : 4;

// Rows [row, row + R) of the product by strips [strip, strip + NJ).
template <int R, int NJ, bool kSplit, class Sink>
void block_product(const Product& p, int64_t row, int64_t strip, const Sink& sink) {
  constexpr int kBases = (R + 2) / 3;  // of A's rows, one address register serves three
  constexpr int kParts = kSums<R, NJ, kSplit>;
  Block<R, NJ> acc = {}, held, part[kParts > 1 ? kParts - 1 : 1] = {};
  bool holds = false;
  int64_t chain = 0;
  sink.template prepare<R, NJ>(row, strip);
  const float* b = p.b + strip * p.b_strip;
  const int64_t b_strip = p.b_strip;
  for (int s = 0; s < p.count; ++s) {
    const int64_t a_row = p.segments[s].row;
    const float* a = p.segments[s].a + row * a_row;
    for (int64_t left = p.segments[s].depth; left > 0;) {
      const int64_t depth = std::min(left, kChain);
      if (chain + depth > kChain) {
        RDK_UNROLL for (int r = 0; r < R; ++r) {
          RDK_UNROLL for (int j = 0; j < NJ; ++j) {
            held.v[r][j] = holds ? add(held.v[r][j], acc.v[r][j]) : acc.v[r][j];
            acc.v[r][j] = V16{};
          }
        }
        holds = true, chain = 0;
      }
      chain += depth, left -= depth;
      const float* base[kBases];
      RDK_UNROLL for (int i = 0; i < kBases; ++i) {
        base[i] = a + 3 * i * a_row;
        asm("" : "+r"(base[i]));  // else GCC derives all rows from one base, and spills
      }
      const auto step = [&](Block<R, NJ>& to, int64_t k) RDK_LAMBDA {
        V16 w[NJ];
        RDK_UNROLL for (int j = 0; j < NJ; ++j) w[j] = load16(b + j * b_strip);
        RDK_UNROLL for (int r = 0; r < R; ++r) {
          const F x = splat(base[r / 3][r % 3 * a_row + k]);
          RDK_UNROLL for (int j = 0; j < NJ; ++j) {
            RDK_UNROLL for (int i = 0; i < kRegs; ++i) to.v[r][j].r[i] += x * w[j].r[i];
          }
        }
        b += kVec;
      };
      int64_t k = 0;
      for (; kParts > 1 && k + kParts <= depth; k += kParts) {
        RDK_UNROLL for (int i = 0; i + 1 < kParts; ++i) step(part[i], k + i);
        step(acc, k + kParts - 1);
      }
      _Pragma("GCC unroll 4") for (; k < depth; ++k) step(acc, k);
      a += depth;
    }
  }
  RDK_UNROLL for (int i = 0; i + 1 < kParts; ++i) {
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      RDK_UNROLL for (int j = 0; j < NJ; ++j) acc.v[r][j] = add(acc.v[r][j], part[i].v[r][j]);
    }
  }
  if (holds) {
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      RDK_UNROLL for (int j = 0; j < NJ; ++j) acc.v[r][j] = add(held.v[r][j], acc.v[r][j]);
    }
  }
  sink.put(row, strip, acc);
}

template <class Sink>
using BlockProduct = void (*)(const Product&, int64_t, int64_t, const Sink&);

template <class Sink, int NJ, bool kSplit, int... I>
constexpr std::array<BlockProduct<Sink>, sizeof...(I)> block_products(std::integer_sequence<int, I...>) {
  return {block_product<I + 1, NJ, (kSums<I + 1, NJ, kSplit> > 1), Sink>...};
}

// All `rows` by `strips`, in blocks of about equal height; strips outermost, so that B's part stays near. With kSplit
// the bits depend on `rows`: for calls whose number of rows does not depend on the number of threads.
template <bool kSplit = false, class Sink>
void product(const Product& p, int64_t rows, int64_t strips, const Sink& sink) {
  static constexpr auto wide =
      block_products<Sink, kBlockStrips, kSplit>(std::make_integer_sequence<int, kBlockRows>{});
  static constexpr auto one = block_products<Sink, 1, kSplit>(std::make_integer_sequence<int, kBlockRows>{});
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t strip = 0; strip < strips;) {
    const int width = strips - strip >= kBlockStrips ? kBlockStrips : 1;
    const auto& kernels = width == kBlockStrips ? wide : one;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t height = (rows - row + blocks - block - 1) / (blocks - block);
      if (strip == 0 && p.next.a) {
        for (int64_t r = row; r < row + height; ++r) fetch(p.next.a + r * p.next.row, p.next.depth);
      }
      kernels[size_t(height - 1)](p, row, strip, sink);
      row += height;
    }
    strip += width;
  }
}

// Into fp32 rows, whole strips.
struct ToRows {
  float* c;
  int64_t row;  // distance of two rows
  bool accumulate = false;

  template <int R, int NJ>
  RDK_INLINE void prepare(int64_t, int64_t) const {}

  template <int R, int NJ>
  RDK_INLINE void put(int64_t first, int64_t strip, const Block<R, NJ>& block) const {
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      RDK_UNROLL for (int j = 0; j < NJ; ++j) {
        float* to = c + (first + r) * row + (strip + j) * kVec;
        store16(to, accumulate ? add(load16(to), block.v[r][j]) : block.v[r][j]);
      }
    }
  }
};

// B as it is given: [taps, depth, columns] by its strides; its rows are tap after tap.
struct Matrix {
  const float* data;
  int64_t taps, depth, columns, tap_stride, depth_stride, column_stride;
};

// Strip `s` of a matrix, [taps * depth][16], zero in the columns that it lacks.
inline void pack_strip(const Matrix& m, int64_t s, float* to) {
  const float* const first = m.data + s * kVec * m.column_stride;
  const int64_t lanes = std::min<int64_t>(kVec, m.columns - s * kVec);
  for (int64_t t = 0; t < m.taps; ++t) {
    const float* const from = first + t * m.tap_stride;
    float* const rows = to + t * m.depth * kVec;
    int64_t k = 0;
    if (lanes == kVec && m.column_stride == 1) {
      for (; k < m.depth; ++k) store16(rows + k * kVec, load16(from + k * m.depth_stride));
    } else if (lanes == kVec && m.depth_stride == 1) {
      for (; k + kVec <= m.depth; k += kVec) {
        V16 block[kVec];
        for (int l = 0; l < kVec; ++l) block[l] = load16(from + l * m.column_stride + k);
        transpose16(block);
        for (int l = 0; l < kVec; ++l) store16(rows + (k + l) * kVec, block[l]);
      }
    }
    for (; k < m.depth; ++k) {
      for (int64_t l = 0; l < kVec; ++l) {
        rows[k * kVec + l] = l < lanes ? from[k * m.depth_stride + l * m.column_stride] : 0.0f;
      }
    }
  }
}

}  // namespace rdk
