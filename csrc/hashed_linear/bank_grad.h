// Grad of the bank: dbank[k] = scale * sum over the (o, i) that the map sends to k of sign * sum_m dy[m, o] x[m, i].
// The micro-kernel makes one small tile of dV at a time, which is added to its slots at once; dV is never stored.
// Partitions of the outputs have a partial bank each, merged in a fixed tree: the bits depend on the shape alone.
#pragma once

#include <atomic>
#include <vector>

#include "common/scratch.h"
#include "hashed_linear/micro.h"
#include "hashed_linear/problem.h"

namespace rdk {

constexpr int64_t kGradOutputs = 192;  // outputs per block, a multiple of kRows
constexpr int64_t kGradStrips = 8;     // of x packed in one sweep: its rows lie pages apart
constexpr int64_t kGradPartitions = 16;
constexpr int64_t kPartialBytes = 8 << 20;  // of partial banks beyond the first two
// Multiply-adds that a bank value of a partition must stand for: to clear and merge one costs about a hundred. Two
// partitions are wanted sooner, since they are what a second thread can take.
constexpr double kPairProducts = 8, kMergeProducts = 4096;

template <class T>
class BankGrad {
 public:
  BankGrad(const Map& map, const View<T>& dy, const View<T>& x, float scale, T* out, int64_t numel)
      : map_(map), dy_(dy), x_(x), scale_(scale), out_(out), numel_(numel), partitions_(1) {
    // More partitions only where their merge (numel adds each) stays far below the product itself.
    while (partitions_ < kGradPartitions && dy.cols / (2 * partitions_) >= 2 * kVec) {
      const int64_t next = 2 * partitions_;
      const bool fits = (next - 1) * numel * int64_t(sizeof(float)) <= kPartialBytes;
      const double products = double(dy.rows) * dy.cols * x.width() / (double(numel) * next);
      if (next == 2 ? products < kPairProducts : !(fits && products >= kMergeProducts)) break;
      partitions_ = next;
    }
    arrived_ = std::vector<std::atomic<int>>(partitions_);
  }

  int64_t tasks() const { return partitions_; }

  // Floats of work memory: one partial bank per partition, the first in `out` where that is fp32.
  int64_t workspace() const { return (partitions_ - kInPlace) * numel_; }

  void run(int64_t first, int64_t last, float* workspace) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t rows = round_up(ceil_div(dy_.cols, partitions_), kVec);
      float* total = partial(p, workspace);
      std::fill(total, total + numel_, 0.0f);
      const int64_t end = std::min(dy_.cols, (p + 1) * rows);
      for (int64_t o = p * rows; o < end; o += kGradOutputs) add_outputs(o, std::min(kGradOutputs, end - o), total);
      merge(p, workspace);
    }
  }

 private:
  static constexpr int64_t kInPlace = std::is_same_v<T, float>;

  float* partial(int64_t p, float* workspace) const {
    if constexpr (kInPlace) {
      if (p == 0) return out_;
    }
    return workspace + (p - kInPlace) * numel_;
  }

  // Whoever arrives second at a node of the tree adds its right child to its left one.
  void merge(int64_t p, float* workspace) {
    for (int64_t width = 1; width < partitions_; width *= 2) {
      const int64_t node = p / (2 * width);
      if (arrived_[partitions_ / (2 * width) + node].fetch_add(1, std::memory_order_acq_rel) == 0) return;
      p = node * 2 * width;
      float *left = partial(p, workspace), *right = partial(p + width, workspace);
      for (int64_t i = 0; i < numel_; ++i) left[i] += right[i];
    }
    if constexpr (!kInPlace) {
      const float* total = partial(0, workspace);
      for (int64_t i = 0; i < numel_; ++i) convert(total[i], out_ + i);
    }
  }

  void add_outputs(int64_t o0, int64_t outputs, float* total) const {
    float* packed_dy = Scratch::floats(0, kGradOutputs * kDepth);
    float* packed_x = Scratch::floats(1, kGradStrips * kVec * kDepth);
    for (int64_t m0 = 0; m0 < dy_.rows; m0 += kDepth) {
      const int64_t depth = std::min(kDepth, dy_.rows - m0);
      for (int64_t g = 0; g < outputs; g += kRows) pack_dy(m0, depth, o0 + g, outputs - g, packed_dy + g * depth);
      for (int64_t i = 0; i < x_.width(); i += kGradStrips * kVec) {
        const int64_t strips = std::min(kGradStrips, ceil_div(x_.width() - i, kVec));
        pack_x(m0, depth, i, strips, packed_x);
        for (int64_t s = 0; s < strips; s += kStrips) {
          multiply_and_scatter(o0, outputs, i + s * kVec, std::min<int64_t>(kStrips, strips - s), depth, packed_dy,
                               packed_x + s * kVec * depth, total);
        }
      }
    }
  }

  // [strip][depth][16].
  void pack_x(int64_t m0, int64_t depth, int64_t i, int64_t strips, float* out) const {
    for (int64_t m = 0; m < depth; ++m) {
      for (int64_t s = 0; s < strips; ++s) {
        store16(out + (s * depth + m) * kVec, row_vector(x_, m0 + m, i + s * kVec));
      }
    }
  }

  // [depth][rows], scaled.
  void pack_dy(int64_t m0, int64_t depth, int64_t o, int64_t left, float* out) const {
    const int64_t rows = std::min<int64_t>(kRows, left);
    for (int64_t m = 0; m < depth; ++m) {
      for (int64_t r = 0; r < rows; ++r) out[m * rows + r] = scale_ * dy_.at(m0 + m, o + r);
    }
  }

  void multiply_and_scatter(int64_t o0, int64_t outputs, int64_t i0, int64_t strips, int64_t depth,
                            const float* packed_dy, const float* packed_x, float* total) const {
    alignas(64) float tile[kRows * kStrips * kVec];
    Places granules[kStrips][kGradOutputs / kVec];
    Elements elements[kStrips][kRows];
    if (!map_.element()) {
      for (int64_t o = 0; o < outputs; o += kVec) {
        const U16 prefix = row_prefixes(map_, uint32_t(o0 + o));
        for (int64_t s = 0; s < strips; ++s) {
          place_rows(map_, prefix, uint32_t(o0 + o), uint32_t(i0 + s * kVec), &granules[s][o / kVec]);
        }
      }
    }
    Micro m{nullptr, 0, packed_x, kVec * depth, depth, tile, kStrips * kVec, false};
    for (int64_t g = 0; g < outputs; g += kRows) {
      const int rows = int(std::min<int64_t>(kRows, outputs - g));
      for (int64_t s = 0; s < strips; ++s) {  // the lines to add to arrive while the product is made
        for (int64_t o = g; o < g + rows; ++o) {
          if (map_.element()) {
            elements[s][o - g].place(map_, uint32_t(o0 + o), uint32_t(i0 + s * kVec), total);
          } else {
            __builtin_prefetch(total + size_t(granules[s][o / kVec].vector[o % kVec]) * kVec, 1);
          }
        }
      }
      m.a = packed_dy + g * depth;
      micro_dispatch<true>(rows, int(strips), m);
      for (int64_t o = g; o < g + rows; ++o) {
        for (int64_t s = 0; s < strips; ++s) {
          const V16 sums = load16(tile + ((o - g) * kStrips + s) * kVec);
          const int lanes = int(std::min<int64_t>(kVec, x_.width() - i0 - s * kVec));
          if (map_.element()) {
            elements[s][o - g].add(sums, lanes, total);
          } else {
            const Places& at = granules[s][o / kVec];
            add_vector(at.vector[o % kVec], at.aux[o % kVec], lanes, sums, total);
          }
        }
      }
    }
  }

  // Sixteen weights of one row, a slot each.
  struct Elements {
    alignas(64) uint32_t slot[kVec];
    alignas(64) uint32_t flip[kVec];

    void place(const Map& map, uint32_t o, uint32_t i0, const float* total) {
      const U16 h = row_hashes(map, o, i0);
      RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
        store(slot + i * kLanes, mulhi(h.r[i], map.slots));
        store(flip + i * kLanes, h.r[i] << 31);
      }
      RDK_UNROLL for (int i = 0; i < kVec; ++i) __builtin_prefetch(total + slot[i], 1);
    }

    void add(V16 sums, int lanes, float* total) const {
      alignas(64) float value[kVec];
      store16(value, rdk::flip(sums, load16(flip)));
      if (lanes == kVec) {
        RDK_UNROLL for (int i = 0; i < kVec; ++i) total[slot[i]] += value[i];
      } else {
        for (int i = 0; i < lanes; ++i) total[slot[i]] += value[i];
      }
    }
  };

  static void add_vector(uint32_t vector, uint32_t aux, int lanes, V16 sums, float* total) {
    V16 signed_sums = flip(sums, sign_lanes16(aux));
    if (lanes < kVec) signed_sums = keep_first(signed_sums, lanes);
    float* slot = total + size_t(vector) * kVec;
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) store(slot + i * kLanes, load(slot + i * kLanes) + signed_sums.r[i]);
  }

  Map map_;
  View<T> dy_, x_;
  float scale_;
  T* out_;
  int64_t numel_, partitions_;
  std::vector<std::atomic<int>> arrived_;
};

}  // namespace rdk
