// Many rows, forward and grad of x: decode a cache-sized panel of V once, packed for the micro-kernel, and reuse it for
// every row. The panel is [strips][depth][16]; `Pass` says which axis of V is the depth.
#pragma once

#include "common/scratch.h"
#include "hashed_linear/micro.h"
#include "hashed_linear/problem.h"

namespace rdk {

constexpr int64_t kPanelColumns = 128;  // with kDepth: 128 KiB, an eighth to a half of L2
constexpr int64_t kPanelRows = 512;     // rows per decoded panel: 256 KiB of accumulators

// y[m, o] = sum_i x[m, i] V[o, i]: columns are outputs, the depth runs along inputs.
struct ForwardPass {
  template <class T>
  static void decode_strip(const T* bank, const Map& map, uint32_t o0, uint32_t i0, int64_t depth, float* strip) {
    const U16 prefix = row_prefixes(map, o0);
    if (map.element()) {
      for (int64_t k = 0; k < depth; ++k) {
        const uint32_t column_hash = (i0 + uint32_t(k)) * kPrime3;
        const U16 h = map16([&](int i) { return hash_finish<U>(prefix.r[i] + column_hash); });
        store16(strip + k * kVec, gather_element(bank, map, h));
      }
      return;
    }
    Places at[kDepth / kVec];
    for (int64_t k = 0; k < depth; k += kVec) {
      place_rows(map, prefix, o0, i0 + uint32_t(k), &at[k / kVec]);
      prefetch(bank, at[k / kVec].vector);
    }
    for (int64_t k = 0; k < depth; k += kVec) {
      V16 block[kVec];
      RDK_UNROLL for (int j = 0; j < kVec; ++j) block[j] = decode_vector(bank, at[k / kVec], j);
      transpose16(block);
      if (k + kVec <= depth) {
        RDK_UNROLL for (int j = 0; j < kVec; ++j) store16(strip + (k + j) * kVec, block[j]);
      } else {
        for (int64_t j = 0; k + j < depth; ++j) store16(strip + (k + j) * kVec, block[j]);
      }
    }
  }
};

// dx[m, i] = sum_o dy[m, o] V[o, i]: columns are inputs, the depth runs along outputs.
struct InputGradPass {
  template <class T>
  static void decode_strip(const T* bank, const Map& map, uint32_t i0, uint32_t o0, int64_t depth, float* strip) {
    if (map.element()) {
      for (int64_t k = 0; k < depth; ++k) {
        store16(strip + k * kVec, gather_element(bank, map, row_hashes(map, o0 + uint32_t(k), i0)));
      }
      return;
    }
    Places at[kDepth / kVec];
    for (int64_t k = 0; k < depth; k += kVec) {
      const uint32_t o = o0 + uint32_t(k);
      place_rows(map, row_prefixes(map, o), o, i0, &at[k / kVec]);
      prefetch(bank, at[k / kVec].vector);
    }
    for (int64_t k = 0; k < depth; ++k) store16(strip + k * kVec, decode_vector(bank, at[k / kVec], int(k % kVec)));
  }
};

template <class T>
struct ManyRows {
  Map map;
  View<T> a;  // [M, depth]
  const T* bank;
  Output<T> y;  // [M, columns]

  // The batch in even blocks, none above kPanelRows by more than a tile of the micro-kernel.
  int64_t row_block() const { return round_up(ceil_div(y.rows, ceil_div(y.rows, kPanelRows)), kRows); }
  int64_t tasks() const { return ceil_div(y.rows, row_block()) * ceil_div(y.cols, kPanelColumns); }

  template <class Pass>
  void run(int64_t first, int64_t last) const {
    float* panel = Scratch::floats(0, kPanelColumns * kDepth);
    const int64_t block = row_block();
    float* acc = Scratch::floats(1, block * kPanelColumns);
    const int64_t panels = ceil_div(y.cols, kPanelColumns);
    for (int64_t task = first; task < last; ++task) {
      const int64_t m0 = task / panels * block, c0 = task % panels * kPanelColumns;
      const int64_t rows = std::min(block, y.rows - m0), strips = ceil_div(std::min(kPanelColumns, y.cols - c0), kVec);
      for (int64_t k0 = 0; k0 == 0 || k0 < a.width(); k0 += kDepth) {
        const int64_t depth = std::min(kDepth, a.width() - k0);
        for (int64_t s = 0; s < strips; ++s) {
          Pass::decode_strip(bank, map, uint32_t(c0 + s * kVec), uint32_t(k0), depth, panel + s * kVec * depth);
        }
        multiply(m0, rows, k0, depth, panel, strips, acc);
      }
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t s = 0; s < strips; ++s) {
          write_vector(y, m0 + m, c0 + s * kVec, load16(acc + m * kPanelColumns + s * kVec));
        }
      }
    }
  }

 private:
  // One depth block of A times the panel, into acc.
  void multiply(int64_t m0, int64_t rows, int64_t k0, int64_t depth, const float* panel, int64_t strips,
                float* acc) const {
    Micro m{};
    const float* block = direct(m0, k0, depth);
    if (block) {
      m.a_row = a.row_stride;
    } else {
      m.a_row = kDepth + kVec;  // off the power of two: the rows of a tile must not share one cache set
      float* copy = Scratch::floats(2, rows * m.a_row);
      copy_block(a, m0, rows, k0, depth, copy, m.a_row);
      block = copy;
    }
    m.b_strip = kVec * depth;
    m.depth = depth;
    m.c_row = kPanelColumns;
    m.accumulate = k0 != 0;
    for (int64_t s = 0; s < strips; s += kStrips) {
      m.b = panel + s * m.b_strip;
      for (int64_t r = 0; r < rows; r += kRows) {
        m.a = block + r * m.a_row;
        m.c = acc + r * kPanelColumns + s * kVec;
        micro_dispatch<false>(int(std::min<int64_t>(kRows, rows - r)), int(std::min<int64_t>(kStrips, strips - s)), m);
      }
    }
  }

  // fp32 rows are read where they stand.
  const float* direct(int64_t m0, int64_t k0, int64_t depth) const {
    if constexpr (std::is_same_v<T, float>) {
      if (a.col_stride == 1 && k0 + depth <= a.cols) return a.data + m0 * a.row_stride + k0;
    }
    return nullptr;
  }
};

}  // namespace rdk
