// The monochromatic convolution in one pass: rows of x become rows of colours in a ring, and each colour's filters are
// one product over them, its lanes outputs: A's rows are windows of the colour's line, stride_w apart.
#pragma once

#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "monochromatic_conv2d/colours.h"
#include "monochromatic_conv2d/windows.h"

namespace rdk {

constexpr int kHalf = kVec / 2;

// The outputs in the order of their colours, `counts` of each. A colour's filters stand as strips [kh, kw][16]; what
// is left, if at most eight, as [kh, kw][8]. Two colours that follow one another and have at most eight each are a
// pair: [kh, kw][8 times one of each].
template <class T>
struct Monochromatic {
  Image<const T> x;
  Output<T> out;
  Geometry g;
  int64_t kh, kw, colours;
  const int64_t* counts;
  const float* packed;  // colours [C'][C], then the filters

  static int64_t columns_of_colour(int64_t count) {
    const int64_t rest = count % kVec;
    return count - rest + (rest == 0 ? 0 : rest <= kHalf ? kHalf : kVec);
  }
  static bool small(int64_t count) { return 0 < count && count <= kHalf; }
  // Colours that run together from `k` on.
  int64_t together(int64_t k) const { return k + 1 < colours && small(counts[k]) && small(counts[k + 1]) ? 2 : 1; }
  int64_t packed_floats() const {
    int64_t columns = 0;
    for (int64_t k = 0; k < colours; k += together(k)) {
      columns += together(k) == 2 ? kVec : columns_of_colour(counts[k]);
    }
    return colours * x.c + columns * kh * kw;
  }

  Tiles tiles(int64_t threads) const {
    const int64_t line = colours * (g.dilation_h * (kh - 1) + 1 + g.stride_h) + x.c;
    const int64_t most = std::max<int64_t>(1, (kLineFloats / line - kw * g.dilation_w) / g.stride_w);
    const double own = double(x.c * colours * g.stride_h * g.stride_w), rest = double(out.y.c * kh * kw);
    return Tiles(x.n, out.y.h, out.y.w, most, double(g.dilation_h * (kh - 1)) / double(g.stride_h) * own / (own + rest),
                 threads);
  }

  void run(const Tile& t) const {
    const Span columns = columns_of(g, kw, x.w, t);
    const int64_t whole = columns.whole(), slots = g.dilation_h * (kh - 1) + 1, row = out.y.c + kVec;
    float* const ring = Scratch::floats(1, size_t(colours * slots * whole + kVec));
    float* const planes = Scratch::floats(2, size_t(x.c * (columns.real() + kVec)));
    float* const buffer = Scratch::floats(3, size_t(t.width() * row));
    for (int64_t k = 0; k < colours; k += together(k)) {
      clear_outside(ring + k * slots * whole, slots, together(k), columns);
    }
    std::vector<const float*> lines(size_t(kh), nullptr);
    int64_t next = std::max<int64_t>(0, t.y0 * g.stride_h - g.top);
    for (int64_t y = t.y0; y < t.y1; ++y) {
      const Taps taps = taps_of(g, kh, x.h, y);
      const int64_t end = taps.begin < taps.end ? taps.row0 + (taps.end - 1) * g.dilation_h + 1 : next;
      for (next = std::max(next, taps.row0); next < end; ++next) {
        if (columns.real()) make_colours(t.image, next, columns, planes, ring, next % slots, slots);
      }
      const float* b = packed + colours * x.c;
      for (int64_t k = 0, first = 0; k < colours;) {
        const int64_t joined = together(k);
        for (int64_t i = taps.begin; i < taps.end; ++i) {
          const int64_t slot = (taps.row0 + i * g.dilation_h) % slots;
          lines[size_t(i - taps.begin)] = ring + (k * slots + joined * slot) * whole;
        }
        Windows windows{lines.data(), taps.end - taps.begin, g.stride_w, g.dilation_w, kw, nullptr, counts[k]};
        if (joined == 2) {
          windows.filters = b + kVec * taps.begin * kw;
          window_product<kVec, 2>(windows, t.width(), buffer + first, row);
          b += kVec * kh * kw;
        } else {
          b = filter(windows, b, counts[k], taps.begin, t.width(), buffer + first, row);
        }
        for (const int64_t end_of_these = k + joined; k < end_of_these; ++k) first += counts[k];
      }
      finish(out, t.image, y, t.x0, t.width(), buffer, row, 0, out.y.c);
    }
  }

 private:
  // One colour's outputs, whose last vector may write past them: the next colour writes there later. Returns the next
  // colour's filters.
  const float* filter(Windows& windows, const float* b, int64_t count, int64_t skipped, int64_t pixels, float* to,
                      int64_t row) const {
    for (; count > kHalf; count -= kVec, to += kVec, b += kVec * kh * kw) {
      windows.filters = b + kVec * skipped * kw;
      window_product<kVec>(windows, pixels, to, row);
    }
    if (count <= 0) return b;
    windows.filters = b + kHalf * skipped * kw;
    window_product<kHalf>(windows, pixels, to, row);
    return b + kHalf * kh * kw;
  }

  // Row `r` of x as a line of every colour, in `slot` of each colour's `slots`; a pair has one line for both.
  void make_colours(int64_t image, int64_t r, const Span& columns, float* planes, float* ring, int64_t slot,
                    int64_t slots) const {
    const T* const from = x.at(image, r, columns.begin);
    const int64_t width = columns.real();
    const float* line = planes;
    int64_t plane = width + kVec;
    if (std::is_same_v<T, float> && x.w_stride == 1) {
      line = reinterpret_cast<const float*>(from), plane = x.c_stride;
    } else {
      split_channels(from, width, x.c, x.w_stride, x.c_stride, planes, plane);
    }
    for (int64_t k = 0; k < colours; k += together(k)) {
      const int64_t joined = together(k);
      float* const to = ring + (k * slots + joined * slot) * columns.whole() + joined * columns.left;
      (joined == 2 ? mix_line<2> : mix_line<1>)(line, plane, width, x.c, packed + k * x.c, to);
    }
  }
};

}  // namespace rdk
