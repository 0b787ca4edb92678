// The three passes: panels of the weight are decoded to where the common product reads them.
#pragma once

#include <vector>

#include "common/product.h"
#include "common/scratch.h"
#include "palette_linear/packed.h"

namespace rdk {

constexpr int64_t kPanelDepth = 256;    // of one product: a strip of the weight is 16 KiB
constexpr int64_t kGradDepth = 64;      // the same where each element is a chain of its own: shorter, for its rounding
constexpr int64_t kPanelColumns = 128;  // of the result, a task
constexpr int64_t kPanelRows = 512;     // that share a decoded panel: 256 KiB of sums
constexpr int64_t kGradInputs = 112;    // whose gradients are made at once: they stay in L1

struct Rows {
  const float* data;
  int64_t stride;
};

struct Weight {
  Codebook book;
  Packed packed;
  Decoder decoder;
};

// A result [rows, columns] in blocks of rows by columns, each a task.
struct Result {
  float* data;
  int64_t rows, columns;
  const float* bias;  // or null

  // Even blocks, of whole blocks of the product.
  int64_t row_block() const {
    const int64_t blocks = (rows + kPanelRows - 1) / kPanelRows;
    return ceil_to((rows + blocks - 1) / blocks, kBlockRows);
  }
  int64_t panels() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
  int64_t tasks() const { return (rows + row_block() - 1) / row_block() * panels(); }

  // fn(first row, rows, first column, strips, sums [rows][kPanelColumns]), then the sums and the bias are written.
  template <class Fn>
  void task(int64_t i, const Fn& fn) const {
    const int64_t m0 = i / panels() * row_block(), c0 = i % panels() * kPanelColumns;
    const int64_t count = std::min(row_block(), rows - m0), width = std::min(kPanelColumns, columns - c0);
    float* const sums = Scratch::floats(1, size_t(count * kPanelColumns));
    fn(m0, count, c0, strips_of(width), sums);
    for (int64_t m = 0; m < count; ++m) write(m0 + m, c0, width, sums + m * kPanelColumns);
  }

  void write(int64_t row, int64_t column, int64_t width, const float* sums) const {
    float* const to = data + row * columns + column;
    for (int64_t i = 0; i < width; ++i) to[i] = sums[i] + (bias ? bias[column + i] : 0.0f);
  }
};

// y = x W^T + bias
struct Forward {
  Rows x;
  const Weight& w;
  Result y;

  // One row: strip `s` of its outputs.
  void run_strip(int64_t s) const {
    alignas(64) float sums[kVec];
    store16(sums, w.decoder.dot(w.book, w.packed, s, x.data));
    y.write(0, s * kVec, std::min<int64_t>(kVec, y.columns - s * kVec), sums);
  }

  void run(int64_t i) const {
    y.task(i, [&](int64_t m0, int64_t rows, int64_t o0, int64_t strips, float* sums) {
      float* const panel = Scratch::floats(0, kBlockStrips * kPanelDepth * kVec);
      for (int64_t k0 = 0; k0 < w.packed.in; k0 += kPanelDepth) {
        const int64_t depth = std::min(kPanelDepth, w.packed.in - k0);
        const Segment a{x.data + m0 * x.stride + k0, x.stride, depth};
        for (int64_t s = 0; s < strips; s += kBlockStrips) {
          const int64_t own = std::min<int64_t>(kBlockStrips, strips - s);
          for (int64_t j = 0; j < own; ++j) {
            w.decoder.decode(w.book, w.packed, o0 / kVec + s + j, k0, depth, panel + j * depth * kVec);
          }
          product(Product{&a, 1, panel, depth * kVec}, rows, own, ToRows{sums + s * kVec, kPanelColumns, k0 > 0});
        }
      }
    });
  }
};

// dx = dy W
struct InputGrad {
  Rows dy;
  const Weight& w;
  Result dx;

  void run(int64_t i) const {
    dx.task(i, [&](int64_t m0, int64_t rows, int64_t i0, int64_t strips, float* sums) {
      float* const panel = Scratch::floats(0, kPanelColumns * kGradDepth);
      for (int64_t o0 = 0; o0 < w.packed.out; o0 += kGradDepth) {
        const int64_t depth = std::min(kGradDepth, w.packed.out - o0), wide = ceil_to(depth, kVec);
        for (int64_t s = 0; s < strips; ++s) {
          for (int64_t o = 0; o < wide; o += kVec) turn(o0 + o, i0 + s * kVec, panel + (s * wide + o) * kVec);
        }
        const Segment a{dy.data + m0 * dy.stride + o0, dy.stride, depth};
        product(Product{&a, 1, panel, wide * kVec}, rows, strips, ToRows{sums, kPanelColumns, o0 > 0});
      }
    });
  }

 private:
  // Sixteen outputs by sixteen inputs, the inputs side by side.
  void turn(int64_t o, int64_t i, float* to) const {
    alignas(64) float columns[kVec * kVec] = {};
    w.decoder.decode(w.book, w.packed, o / kVec, i, std::min<int64_t>(kVec, w.packed.in - i), columns);
    V16 block[kVec];
    for (int j = 0; j < kVec; ++j) block[j] = load16(columns + j * kVec);
    transpose16(block);
    for (int j = 0; j < kVec; ++j) store16(to + j * kVec, block[j]);
  }
};

// dcodebook[k] = sum of (x^T dy)[i, o] over the weights of index k. A task is a few strips of outputs, with sums of its
// own for each of the sixteen lanes; what the tasks have is added up in their order.
struct CodebookGrad {
  Matrix dy;        // [rows, out]
  const float* xt;  // [in][rows]
  const Weight& w;  // with the codebook of indices
  int64_t entries;

  int64_t tasks() const { return (strips_of(w.packed.out) + kBlockStrips - 1) / kBlockStrips; }

  void run(int64_t i, double* to) const {
    const int64_t rows = dy.depth, first = i * kBlockStrips;
    const int64_t strips = std::min<int64_t>(kBlockStrips, strips_of(w.packed.out) - first);
    float* const b = Scratch::floats(0, size_t(strips * rows * kVec));
    for (int64_t s = 0; s < strips; ++s) pack_strip(dy, first + s, b + s * rows * kVec);
    float* const grads = Scratch::floats(1, kGradInputs * kBlockStrips * kVec);
    float* const index = Scratch::floats(2, kGradInputs * kVec);
    std::vector<double> sums(size_t(kVec * entries));
    for (int64_t i0 = 0; i0 < w.packed.in; i0 += kGradInputs) {
      const int64_t inputs = std::min(kGradInputs, w.packed.in - i0);
      const Segment a{xt + i0 * rows, rows, rows};
      product(Product{&a, 1, b, rows * kVec}, inputs, strips, ToRows{grads, kBlockStrips * kVec});
      for (int64_t s = 0; s < strips; ++s) {
        w.decoder.decode(w.book, w.packed, first + s, i0, inputs, index);
        const int64_t lanes = std::min<int64_t>(kVec, w.packed.out - (first + s) * kVec);
        for (int64_t k = 0; k < inputs; ++k) {
          const float* const row = grads + (k * kBlockStrips + s) * kVec;
          for (int64_t l = 0; l < lanes; ++l) {
            sums[size_t(l * entries + std::bit_cast<uint32_t>(index[k * kVec + l]))] += row[l];
          }
        }
      }
    }
    std::fill_n(to, entries, 0.0);
    for (int64_t l = 0; l < kVec; ++l) {
      for (int64_t k = 0; k < entries; ++k) to[k] += sums[size_t(l * entries + k)];
    }
  }
};

}  // namespace rdk
