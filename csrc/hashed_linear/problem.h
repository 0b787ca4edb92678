// What the kernels share: a strided matrix of any element type, and moving blocks of it to and from fp32.
#pragma once

#include <algorithm>

#include "common/hash_map.h"

namespace rdk {

template <class T>
struct View {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;
  bool ones = false;  // a further column of ones: the hashed bias' input

  int64_t width() const { return cols + ones; }
  float at(int64_t r, int64_t c) const { return c < cols ? to_float(data[r * row_stride + c * col_stride]) : 1.0f; }
};

// y = scale * product + bias, in T.
template <class T>
struct Output {
  T* data;
  int64_t rows, cols;
  float scale;
  const T* bias;  // or null
};

// fn.operator()<M>() for M = rows, 1 <= rows <= kMost: each number of rows its own code.
template <int kMost, class Fn>
RDK_INLINE void with_rows(int64_t rows, const Fn& fn) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, fn);
  }
  fn.template operator()<kMost>();
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Sixteen entries of row r from column c, zero past the edge.
template <class T>
RDK_INLINE V16 row_vector(const View<T>& x, int64_t r, int64_t c) {
  if (x.col_stride == 1 && c + kVec <= x.cols) return load16(x.data + r * x.row_stride + c);
  alignas(64) float lanes[kVec] = {};
  const int64_t n = std::min<int64_t>(kVec, x.width() - c);
  for (int64_t i = 0; i < n; ++i) lanes[i] = x.at(r, c + i);
  return load16(lanes);
}

// out[row][cols] = fp32 of a block, rows `stride` apart; writes whole vectors, zero past the edge.
template <class T>
void copy_block(const View<T>& x, int64_t r0, int64_t rows, int64_t c0, int64_t cols, float* out, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; c += kVec) store16(out + r * stride + c, row_vector(x, r0 + r, c0 + c));
  }
}

// Sixteen accumulators of one row to y[row, col ..], cut at the edge.
template <class T>
RDK_INLINE void write_vector(const Output<T>& y, int64_t row, int64_t col, V16 acc) {
  alignas(64) float lanes[kVec];
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc.r[i] *= y.scale;
  store16(lanes, acc);
  const int64_t n = std::min<int64_t>(kVec, y.cols - col);
  T* out = y.data + row * y.cols + col;
  if (y.bias) {
    for (int64_t i = 0; i < n; ++i) lanes[i] += to_float(y.bias[col + i]);
  }
  for (int64_t i = 0; i < n; ++i) convert(lanes[i], out + i);
}

}  // namespace rdk
