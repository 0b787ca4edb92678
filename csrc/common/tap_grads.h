// The gradient of a convolution's taps for stride 1, as a product whose depth is the pixels:
//   grads[i, j, g, q, p] = sum over n, y, x of dz[n, g R2 + q, y, x] t[n, g R1 + p, y + i dh - top, x + j dw - left]
// A task makes all taps of one panel of p over a part of the pixels. Pixels come in blocks that fit into L1 as packed
// panels; a block is summed from zero in registers and then added, which rounds less than one long sum.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "common/scratch.h"

namespace rdk {

// Pixels that lie side by side in both packed panels.
struct Run {
  int64_t a;  // pixel of the block
  const float* b;
  int64_t count;
};

// Where a block of C goes, [q][row]: the last strip has `lanes` columns.
struct TapSum {
  float* c;
  int64_t row;
  int lanes;
  bool accumulate;
};

// R rows of q by NJ strips of p, over the runs; `a` stands [pixel][R].
template <int R, int NJ>
void tap_product(const float* a, const std::vector<Run>& runs, const TapSum& to) {
  Block<R, NJ> acc = {};
  for (const Run& run : runs) {
    const float *x = a + run.a * R, *b = run.b;
    for (int64_t k = 0; k < run.count; ++k, x += R, b += NJ * kVec) {
      V16 w[NJ];
      RDK_UNROLL for (int j = 0; j < NJ; ++j) w[j] = load16(b + j * kVec);
      RDK_UNROLL for (int r = 0; r < R; ++r) {
        const F v = splat(x[r]);
        RDK_UNROLL for (int j = 0; j < NJ; ++j) {
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc.v[r][j].r[i] += v * w[j].r[i];
        }
      }
    }
  }
  RDK_UNROLL for (int j = 0; j < NJ; ++j) {
    const int n = j + 1 < NJ ? kVec : to.lanes;
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      float* const c = to.c + r * to.row + j * kVec;
      if (n == kVec) {
        store16(c, to.accumulate ? add(load16(c), acc.v[r][j]) : acc.v[r][j]);
      } else {
        store_first(c, to.accumulate ? add(load_first(c, n), acc.v[r][j]) : acc.v[r][j], n);
      }
    }
  }
}

using TapProduct = void (*)(const float*, const std::vector<Run>&, const TapSum&);

template <int NJ, int... I>
constexpr std::array<TapProduct, sizeof...(I)> tap_products(std::integer_sequence<int, I...>) {
  return {tap_product<I + 1, NJ>...};
}

struct TapGrads {
  Image<const float> dz, t;  // channels side by side
  int64_t groups, kh, kw, top, left, dilation_h, dilation_w;
  float* grads;  // [kh, kw, groups, R2, R1]

  int64_t r1() const { return t.c / groups; }
  int64_t r2() const { return dz.c / groups; }
  int64_t size() const { return kh * kw * dz.c * r1(); }

  // Into how many sums the pixels are cut where there are few panels; of the problem alone, so that the bits are.
  int64_t parts() const {
    return std::clamp<int64_t>(kTasks / panels(), 1, std::max<int64_t>(1, Blocks(*this).count() / kLeast));
  }
  int64_t tasks() const { return panels() * parts(); }
  int64_t partial_floats() const { return (parts() - 1) * size(); }

  // `partial`: the sums of all parts but the first, which goes to `grads`.
  void run(int64_t task, float* partial) const {
    const int64_t part = task / panels(), panel = task % panels(), count = parts(), blocks = Blocks(*this).count();
    Task(*this, panel, part == 0 ? grads : partial + (part - 1) * size())
        .run(blocks * part / count, blocks * (part + 1) / count);
  }

  void add_parts(const float* partial) const {
    for (int64_t part = 1, floats = size(); part < parts(); ++part, partial += floats) {
      for (int64_t i = 0; i < floats; ++i) grads[i] += partial[i];
    }
  }

 private:
  static constexpr int64_t kPixels = 4096 / kPanel;  // of a block: a panel of p takes half of a small L1
  static constexpr int64_t kTasks = 32, kLeast = 8;  // tasks wanted; blocks of a part

  int64_t panels() const { return groups * Panels{r1()}.count(); }

  struct Pixels {
    int64_t n0, n1, y0, y1, x0, x1;
    int64_t count() const { return (n1 - n0) * (y1 - y0) * (x1 - x0); }
  };

  // Columns outermost, then images, then rows; small maps several at a time.
  struct Blocks {
    int64_t n, h, w, columns, bands, images;

    explicit Blocks(const TapGrads& g) : n(g.dz.n), h(g.dz.h), w(g.dz.w) {
      columns = (w + kPixels * 5 / 4 - 1) / (kPixels * 5 / 4);
      const int64_t width = (w + columns - 1) / columns, rows = std::max<int64_t>(1, kPixels / width);
      bands = (h + rows - 1) / rows;
      images = bands > 1 ? n : (n + std::max<int64_t>(1, rows / h) - 1) / std::max<int64_t>(1, rows / h);
    }
    int64_t count() const { return columns * images * bands; }
    int64_t column(int64_t i) const { return i / bands / images; }
    Pixels operator[](int64_t i) const {
      const int64_t band = i % bands, image = i / bands % images, x = column(i);
      return {n * image / images,     n * (image + 1) / images, h * band / bands,
              h * (band + 1) / bands, w * x / columns,          w * (x + 1) / columns};
    }
  };

  class Task {
   public:
    Task(const TapGrads& of, int64_t panel, float* to)
        : of_(of),
          blocks_(of),
          ranks_{of.r1()},
          group_(panel / ranks_.count()),
          panel_(panel % ranks_.count()),
          width_(ranks_.width(panel_)),
          heights_((of.r2() + kBlockRows - 1) / kBlockRows),
          to_(to) {}

    void run(int64_t first, int64_t last) {
      static constexpr auto wide = tap_products<kBlockStrips>(std::make_integer_sequence<int, kBlockRows>{});
      static constexpr auto one = tap_products<1>(std::make_integer_sequence<int, kBlockRows>{});
      const auto& kernels = width_ == kPanel ? wide : one;
      const int64_t r1 = of_.r1(), r2 = of_.r2();
      const int lanes = int(ranks_.own(panel_) - width_ + kVec);
      for (int64_t i = first; i < last; ++i) {
        if (i == first || blocks_.column(i) != blocks_.column(i - 1)) begin(i);
        const Pixels block = blocks_[i];
        pack_rows(block);
        const float* const a = pack_dz(block);
        for (int64_t tap = 0; tap < of_.kh * of_.kw; ++tap) {
          find_runs(block, tap / of_.kw, tap % of_.kw);
          if (runs_.empty() && i > first) continue;
          float* const c = to_ + (tap * of_.groups + group_) * r2 * r1 + panel_ * kPanel;
          for (int64_t q = 0; q < heights_; ++q) {
            const int64_t row = r2 * q / heights_, rows = r2 * (q + 1) / heights_ - row;
            kernels[size_t(rows - 1)](a + row * block.count(), runs_, TapSum{c + row * r1, r1, lanes, i > first});
          }
        }
      }
    }

   private:
    const TapGrads& of_;
    Blocks blocks_;
    Panels ranks_;
    int64_t group_, panel_, width_, heights_;
    float* to_;
    std::vector<Run> runs_;
    int64_t begin_ = 0, end_ = 0, kept_ = 0;  // the columns of t that a block reads; rows of the ring
    float* ring_ = nullptr;
    std::vector<int64_t> held_;  // the row in each slot, counted over all images

    // The ring anew, for the columns of block `i`.
    void begin(int64_t i) {
      const Pixels block = blocks_[i];
      begin_ = std::clamp<int64_t>(block.x0 - of_.left, 0, of_.t.w);
      end_ = std::clamp<int64_t>(block.x1 - of_.left + of_.dilation_w * (of_.kw - 1), begin_, of_.t.w);
      const int64_t rows = (of_.dz.h + blocks_.bands - 1) / blocks_.bands + of_.dilation_h * (of_.kh - 1);
      const int64_t images = (of_.dz.n + blocks_.images - 1) / blocks_.images;
      kept_ = blocks_.bands > 1 ? std::min(rows, of_.t.h) : images * of_.t.h;
      ring_ = Scratch::floats(0, size_t(kept_ * (end_ - begin_) * width_));
      held_.assign(size_t(kept_), -1);
    }

    float* slot(int64_t image, int64_t row) const {
      return ring_ + (image * of_.t.h + row) % kept_ * (end_ - begin_) * width_;
    }

    void pack_rows(const Pixels& block) {
      const int64_t y0 = std::max<int64_t>(0, block.y0 - of_.top);
      const int64_t y1 = std::min(of_.t.h, block.y1 - of_.top + of_.dilation_h * (of_.kh - 1));
      const int64_t own = ranks_.own(panel_);
      for (int64_t n = block.n0; n < block.n1; ++n) {
        for (int64_t y = y0; y < y1; ++y) {
          int64_t& held = held_[size_t((n * of_.t.h + y) % kept_)];
          if (held == n * of_.t.h + y) continue;
          held = n * of_.t.h + y;
          const float* from = of_.t.at(n, y, begin_) + group_ * of_.r1() + panel_ * kPanel;
          float* to = slot(n, y);
          for (int64_t x = begin_; x < end_; ++x, from += of_.t.w_stride, to += width_) {
            for (int64_t s = 0; s < own; s += kVec) {
              store16(to + s, s + kVec <= own ? load16(from + s) : load_first(from + s, int(own - s)));
            }
          }
        }
      }
    }

    // Block after block of q, in each [pixel][row].
    const float* pack_dz(const Pixels& block) const {
      const int64_t r2 = of_.r2();
      float* const packed = Scratch::floats(1, size_t(block.count() * r2 + kVec));  // a store may pass a row's end
      for (int64_t q = 0; q < heights_; ++q) {
        const int64_t row = r2 * q / heights_, rows = r2 * (q + 1) / heights_ - row;
        float* to = packed + row * block.count();
        for (int64_t n = block.n0; n < block.n1; ++n) {
          for (int64_t y = block.y0; y < block.y1; ++y) {
            const float* from = of_.dz.at(n, y, block.x0) + group_ * r2 + row;
            for (int64_t x = block.x0; x < block.x1; ++x, from += of_.dz.w_stride, to += rows) {
              store16(to, row + kVec <= r2 ? load16(from) : load_first(from, int(r2 - row)));
            }
          }
        }
      }
      return packed;
    }

    // The pixels of the block that tap (i, j) reads inside t.
    void find_runs(const Pixels& block, int64_t i, int64_t j) {
      runs_.clear();
      const int64_t down = i * of_.dilation_h - of_.top, across = j * of_.dilation_w - of_.left;
      const int64_t y0 = std::max(block.y0, -down), y1 = std::min(block.y1, of_.t.h - down);
      const int64_t x0 = std::max(block.x0, -across), x1 = std::min(block.x1, of_.t.w - across);
      if (x0 >= x1) return;
      for (int64_t n = block.n0; n < block.n1; ++n) {
        for (int64_t y = y0; y < y1; ++y) {
          const int64_t row = (n - block.n0) * (block.y1 - block.y0) + y - block.y0;
          runs_.push_back({row * (block.x1 - block.x0) + x0 - block.x0,
                           slot(n, y + down) + (x0 + across - begin_) * width_, x1 - x0});
        }
      }
    }
  };
};

// Columns [first, last) of [taps][count] as [count][taps], sixteen by sixteen.
inline void turn_taps(const float* from, int64_t taps, int64_t count, int64_t first, int64_t last, float* to) {
  for (int64_t m = first; m < last; m += kVec) {
    const int columns = int(std::min<int64_t>(kVec, last - m));
    for (int64_t k = 0; k < taps; k += kVec) {
      const int rows = int(std::min<int64_t>(kVec, taps - k));
      V16 block[kVec];
      for (int l = 0; l < kVec; ++l) {
        const float* const row = from + (k + l) * count + m;
        block[l] = l >= rows ? V16{} : columns == kVec ? load16(row) : load_first(row, columns);
      }
      transpose16(block);
      for (int l = 0; l < columns; ++l) {
        float* const row = to + (m + l) * taps + k;
        rows == kVec ? store16(row, block[l]) : store_first(row, block[l], rows);
      }
    }
  }
}

}  // namespace rdk
