// A ring of rank rows: the first stage's results for the input rows that the next output rows read.
#pragma once

#include <vector>

#include "common/panels.h"

namespace rdk {

// Input clusters `g`, output clusters `h`; without clusters one each. Pair (g, h) is the (g * outputs + h)-th.
struct Clusters {
  int64_t inputs = 1, outputs = 1;
  const int64_t* input_order = nullptr;  // of the channels of x; null: as they stand
  bool by_output = false;                // whether a kept map has its pairs in the order (h, g)
  int64_t pairs() const { return inputs * outputs; }
  int64_t place(int64_t pair) const { return by_output ? pair % outputs * inputs + pair / outputs : pair; }
};

// 1 x 1 products of rows of x, kept panel-major [pair][panel][slot][column][rank] in a ring of rows. A pair of clusters
// (input, output) has its own products, of the input cluster's channels; without clusters there is one pair.
template <class T>
class RankRing {
 public:
  // `inner` as strips [R][C]. `outside`: whether each row has its zero columns too. `height` is the whole output's.
  RankRing(const Image<const T>& x, const Geometry& g, int64_t kh, int64_t height, const Tile& tile,
           const Span& columns, Panels panels, const float* inner, bool outside, const Kept& kept, const Span& owned,
           const Clusters& clusters = {})
      : x_(x),
        g_(g),
        kh_(kh),
        height_(height),
        tile_(tile),
        columns_(columns),
        owned_(owned),
        panels_(panels),
        inner_(inner),
        kept_(kept),
        clusters_(clusters),
        depth_(x.c / clusters.inputs),
        lines_(x, tile.image, columns, 1, clusters.input_order, 0),
        slots_((step_rows(tile) - 1) * g.stride_h + g.dilation_h * (kh - 1) + 1),
        left_(outside ? columns.left : 0),
        width_(outside ? columns.whole() : columns.real()),
        next_(std::max<int64_t>(0, tile.y0 * g.stride_h - g.top)) {
    ring_ = Scratch::floats(1, size_t(clusters.pairs() * panels.floats(slots_ * width_)));
    for (int64_t pair = 0; pair < clusters.pairs() && outside; ++pair) {
      for (int64_t p = 0; p < panels.count(); ++p) {
        clear_outside(panel(p, pair), slots_, panels.width(p), columns);
      }
    }
  }

  // Makes what output rows below `y1` read and is not there yet.
  void advance(int64_t y1) {
    const int64_t end = std::min(x_.h, (y1 - 1) * g_.stride_h - g_.top + g_.dilation_h * (kh_ - 1) + 1);
    for (; next_ < end; ++next_) {
      if (!columns_.real() || !is_read(next_)) continue;
      const float* const pixels = lines_.row(next_);
      for (int64_t pair = 0; pair < clusters_.pairs(); ++pair) {
        const Segment a{pixels + pair / clusters_.outputs * depth_, lines_.pixel(), depth_};
        const float* const inner = inner_ + pair * ceil_to(panels_.ranks, kVec) * depth_;
        for (int64_t p = 0; p < panels_.count(); ++p) {
          Product down{&a, 1, inner + p * kPanel * depth_, kVec * depth_};
          if (p + pair == 0) down.next = lines_.ahead(next_ + 1);
          float* const to = row(p, next_, pair) + left_ * panels_.width(p);
          product(down, columns_.real(), panels_.strips(p), ToRows{to, panels_.width(p)});
          if (owns(next_)) {
            kept_.put(tile_.image, next_, owned_.begin, owned_.end, panels_, p,
                      to + (owned_.begin - columns_.begin) * panels_.width(p), clusters_.place(pair));
          }
        }
      }
    }
  }

  // Panel `p` of input row `r`, at its first column (a zero where the ring has those).
  float* row(int64_t p, int64_t r, int64_t pair = 0) const {
    return panel(p, pair) + r % slots_ * width_ * panels_.width(p);
  }

 private:
  float* panel(int64_t p, int64_t pair) const {
    const int64_t pixels = slots_ * width_;
    return panels_.of(ring_ + pair * panels_.floats(pixels), p, pixels);
  }

  // Strides and dilations leave rows out.
  bool is_read(int64_t r) const {
    if (g_.stride_h == 1) return true;
    for (int64_t k = 0; k < kh_; ++k) {
      const int64_t y = r + g_.top - k * g_.dilation_h;
      if (y >= 0 && y % g_.stride_h == 0) return true;
    }
    return false;
  }
  // Of the bands that compute a row, the one that keeps it: what the next band begins with is that one's.
  bool owns(int64_t r) const { return tile_.y1 == height_ || r < tile_.y1 * g_.stride_h - g_.top; }

  const Image<const T>& x_;
  Geometry g_;
  int64_t kh_, height_;
  Tile tile_;
  Span columns_, owned_;
  Panels panels_;
  const float* inner_;
  Kept kept_;
  Clusters clusters_;
  int64_t depth_;
  Lines<T> lines_;
  int64_t slots_, left_, width_, next_;
  float* ring_;
};

}  // namespace rdk
