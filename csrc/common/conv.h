// The geometry of a convolution on one map, the part of the output that a task makes, and x as fp32 lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/product.h"
#include "common/scratch.h"
#include "common/vec.h"

namespace rdk {

struct Geometry {
  int64_t stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w;
};

// A tensor [N, C, H, W] by its strides.
template <class T>
struct Image {
  T* data;
  int64_t n, c, h, w;
  int64_t n_stride, c_stride, h_stride, w_stride;

  T* at(int64_t image, int64_t row, int64_t column) const {
    return data + image * n_stride + row * h_stride + column * w_stride;
  }
};

// A part of the output of one map: rows [y0, y1), columns [x0, x1).
struct Tile {
  int64_t image, y0, y1, x0, x1;
  int64_t width() const { return x1 - x0; }
};

// The columns of the input that a tile reads: [begin, end) exist, `left` and `right` more are zeros around them.
struct Span {
  int64_t begin, end, left, right;
  int64_t real() const { return end - begin; }
  int64_t whole() const { return left + end - begin + right; }
};

inline Span columns_of(const Geometry& g, int64_t kw, int64_t w, const Tile& t) {
  const int64_t first = t.x0 * g.stride_w - g.left;
  const int64_t last = (t.x1 - 1) * g.stride_w - g.left + g.dilation_w * (kw - 1) + 1;
  const int64_t begin = std::clamp<int64_t>(first, 0, w), end = std::clamp<int64_t>(last, begin, w);
  const int64_t left = end > begin ? begin - first : last - first;
  return {begin, end, left, last - first - left - (end - begin)};
}

// The taps of a kernel line whose rows exist for output row `y`: [begin, end), and the input row of tap 0.
struct Taps {
  int64_t begin, end, row0;
};

inline Taps taps_of(const Geometry& g, int64_t kh, int64_t h, int64_t y) {
  const int64_t row0 = y * g.stride_h - g.top, d = g.dilation_h;
  const int64_t begin = row0 < 0 ? std::min(kh, (-row0 + d - 1) / d) : 0;
  const int64_t end = row0 >= h ? begin : std::clamp<int64_t>((h - 1 - row0) / d + 1, begin, kh);
  return {begin, end, row0};
}

// How the output is cut: every map into row bands and columns, so that each task's lines fit its share of a cache.
class Tiles {
 public:
  // `most_columns` a tile; `extra` is what a band costs beyond its rows, in rows.
  Tiles(int64_t images, int64_t height, int64_t width, int64_t most_columns, double extra, int64_t threads)
      : images_(images), height_(height), width_(width) {
    columns_ = std::max<int64_t>(1, (width + most_columns - 1) / most_columns);
    double best = 0;
    for (int64_t bands = 1; bands <= std::min<int64_t>(height, 8 * threads); ++bands) {
      const int64_t rounds = (images * columns_ * bands + threads - 1) / threads;
      const double cost = double(rounds) * (double((height + bands - 1) / bands) + (bands > 1 ? extra : extra / 2));
      if (bands == 1 || cost < 0.98 * best) best = cost, bands_ = bands;
    }
  }

  int64_t count() const { return images_ * bands_ * columns_; }
  Tile operator[](int64_t i) const {
    const int64_t column = i % columns_, band = i / columns_ % bands_, image = i / columns_ / bands_;
    return {image, height_ * band / bands_, height_ * (band + 1) / bands_, width_ * column / columns_,
            width_ * (column + 1) / columns_};
  }

 private:
  int64_t images_, height_, width_, columns_ = 1, bands_ = 1;
};

// Rows of x as fp32 pixels, channels side by side: where they stand if they are so, else copied when first asked for.
template <class T>
class Lines {
 public:
  // At most `kept` rows that follow one another are in use at a time; `order` (or null) are the channels wanted.
  Lines(const Image<const T>& x, int64_t image, const Span& columns, int64_t kept, const int64_t* order, int scratch)
      : x_(x), image_(image), columns_(columns), kept_(kept), order_(order) {
    if (in_place()) return;
    buffer_ = Scratch::floats(scratch, size_t(kept * columns.real() * pixel()));
    held_.assign(size_t(kept), -1);
  }

  bool in_place() const { return std::is_same_v<T, float> && x_.c_stride == 1 && !order_; }
  int64_t pixel() const { return in_place() ? x_.w_stride : x_.c; }  // distance of two pixels

  // Row `r` as what is soon read, if it exists and is read where it stands.
  Segment ahead(int64_t r) const {
    if constexpr (std::is_same_v<T, float>) {
      if (in_place() && r >= 0 && r < x_.h) return {x_.at(image_, r, columns_.begin), x_.w_stride, x_.c};
    }
    return {};
  }

  // The first pixel of row `r`; rows further apart than `kept` are not used together.
  const float* row(int64_t r) {
    if constexpr (std::is_same_v<T, float>) {
      if (in_place()) return x_.at(image_, r, columns_.begin);
    }
    const int64_t slot = r % kept_;
    float* const line = buffer_ + slot * columns_.real() * x_.c;
    if (held_[size_t(slot)] != r) copy(r, line), held_[size_t(slot)] = r;
    return line;
  }

 private:
  void copy(int64_t r, float* line) const {
    const T* from = x_.at(image_, r, columns_.begin);
    const int64_t width = columns_.real(), channels = x_.c;
    if (order_) {
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          line[i * channels + c] = to_float(from[i * x_.w_stride + order_[c] * x_.c_stride]);
        }
      }
    } else if (x_.c_stride == 1) {
      for (int64_t i = 0; i < width; ++i, line += channels, from += x_.w_stride) {
        int64_t c = 0;
        for (; c + kVec <= channels; c += kVec) store16(line + c, load16(from + c));
        for (; c < channels; ++c) line[c] = to_float(from[c]);
      }
    } else {
      int64_t i = 0;
      if (x_.w_stride == 1) {
        for (; i + kVec <= width && channels >= kVec; i += kVec) transpose_pixels(from + i, line + i * channels);
      }
      for (; i < width; ++i) {
        for (int64_t c = 0; c < channels; ++c)
          line[i * channels + c] = to_float(from[i * x_.w_stride + c * x_.c_stride]);
      }
    }
  }

  // Sixteen pixels of a row whose channels are far apart; the last channels overlap those before them.
  void transpose_pixels(const T* from, float* line) const {
    for (int64_t c = 0; c < x_.c; c += kVec) {
      c = std::min(c, x_.c - kVec);
      V16 rows[kVec];
      for (int64_t l = 0; l < kVec; ++l) rows[l] = load16(from + (c + l) * x_.c_stride);
      transpose16(rows);
      for (int64_t l = 0; l < kVec; ++l) store16(line + l * x_.c + c, rows[l]);
    }
  }

  const Image<const T>& x_;
  int64_t image_;
  Span columns_;
  int64_t kept_;
  const int64_t* order_;
  float* buffer_ = nullptr;
  std::vector<int64_t> held_;  // the row in each slot of the buffer
};

}  // namespace rdk
