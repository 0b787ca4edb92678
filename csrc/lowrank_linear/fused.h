// y = act(x down^T up^T + bias + residual) in one parallel region. Many rows: a block of rows goes through both
// products with its rank rows in a cache. Few rows: all threads share the ranks first, then the outputs, so that each
// weight is read once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/epilogue.h"
#include "common/phases.h"
#include "common/product.h"
#include "common/scratch.h"

namespace rdk {

constexpr int64_t kFewRankRows = 24;  // up to here the weights' bytes weigh more than the products
constexpr int64_t kMostRows = 256;    // of a block
constexpr int64_t kDeep = kChain;     // of x's columns at a time: a block of x stays in L2
constexpr int64_t kTaskStrips = 8;    // of outputs of one task of few rows

template <class T>
struct LowRank {
  const T* x;
  int64_t rows, depth, row_stride, col_stride;
  Output<T> out;  // the rows of y as pixels of one line
  int64_t ranks;
  const float* packed;  // down as strips [R][in], up as strips [O][R]
  float* kept;          // [rows, R], or null

  int64_t rank_row() const { return ceil_to(ranks, kVec); }
  const float* up() const { return packed + rank_row() * depth; }
  int64_t outputs() const { return out.y.c; }

  // -- many rows
  int64_t blocks(int64_t threads) const {
    const int64_t least = ceil_div_(rows, kMostRows);
    return std::min(rows, least < threads ? threads : ceil_div_(least, threads) * threads);
  }
  void run_block(int64_t block, int64_t blocks) const {
    const int64_t first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
    float* const inside = Scratch::floats(1, size_t(count * rank_row()));
    float* const buffer = Scratch::floats(3, size_t(count * kBlockStrips * kVec));
    for (int64_t k = 0; k < depth; k += kDeep) {
      const int64_t deep = std::min(kDeep, depth - k);
      const Segment a = piece(first, count, k, deep);
      Product down{&a, 1, packed + k * kVec, depth * kVec};
      product(down, count, strips_of(ranks), ToRows{inside, rank_row(), k > 0});
    }
    keep(first, count, inside);
    const Segment a{inside, rank_row(), ranks};
    product_to(out, Product{&a, 1, up(), ranks * kVec}, 0, 0, first, count, outputs(), buffer);
  }

  // -- few rows: `inside` and `wide` are shared by the threads
  int64_t rank_tasks() const { return ceil_div_(strips_of(ranks), kBlockStrips); }
  int64_t output_tasks() const { return ceil_div_(strips_of(outputs()), kTaskStrips); }
  // x as fp32 rows: x itself, or `wide` once filled.
  Segment whole(float* wide) const {
    if (direct()) return {reinterpret_cast<const float*>(x), row_stride, depth};
    copy(0, rows, 0, depth, wide, wide_row());
    return {wide, wide_row(), depth};
  }
  // Off the power of two: the rows of a block must not share one cache set.
  int64_t wide_row() const { return ceil_to(depth, 1024) + kVec; }
  bool direct() const { return std::is_same_v<T, float> && col_stride == 1 && (rows == 1 || row_stride % 1024 != 0); }
  void run_ranks(int64_t task, const Segment& a, float* inside) const {
    const int64_t strip = task * kBlockStrips, count = std::min<int64_t>(kBlockStrips, strips_of(ranks) - strip);
    const Product down{&a, 1, packed + strip * kVec * depth, depth * kVec};
    product<true>(down, rows, count, ToRows{inside + strip * kVec, rank_row()});
  }
  void run_outputs(int64_t task, const float* inside) const {
    const int64_t column = task * kTaskStrips * kVec, count = std::min(kTaskStrips * kVec, outputs() - column);
    float* const buffer = Scratch::floats(3, size_t(rows * kBlockStrips * kVec));
    const Segment a{inside, rank_row(), ranks};
    Output<T> part = out;
    part.y.data += column, part.bias += column;
    if (part.residual) part.residual += column;
    product_to<true>(part, Product{&a, 1, up() + column * ranks, ranks * kVec}, 0, 0, 0, rows, count, buffer);
  }
  void keep(int64_t first, int64_t count, const float* inside) const {
    for (int64_t r = 0; kept && r < count; ++r) {
      std::copy_n(inside + r * rank_row(), ranks, kept + (first + r) * ranks);
    }
  }

 private:
  static int64_t ceil_div_(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

  // A block of x as fp32 rows.
  Segment piece(int64_t first, int64_t count, int64_t k, int64_t deep) const {
    if (direct()) return {reinterpret_cast<const float*>(x) + first * row_stride + k, row_stride, deep};
    const int64_t row = kDeep + kVec;
    float* const wide = Scratch::floats(2, size_t(count * row));
    copy(first, count, k, deep, wide, row);
    return {wide, row, deep};
  }
  void copy(int64_t first, int64_t count, int64_t k, int64_t deep, float* to, int64_t row) const {
    for (int64_t r = 0; r < count; ++r) {
      const T* const from = x + (first + r) * row_stride + k * col_stride;
      float* const line = to + r * row;
      int64_t i = 0;
      for (; col_stride == 1 && i + kVec <= deep; i += kVec) store16(line + i, load16(from + i));
      for (; i < deep; ++i) line[i] = to_float(from[i * col_stride]);
    }
  }
};

}  // namespace rdk
