// The monochromatic convolution in one pass: rows of x become rows of colours in a ring, and each colour's filters are
// one product over them, its lanes outputs: A's rows are windows of the colour's line, stride_w apart.
#pragma once

#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "monochromatic_conv2d/half_strip.h"

namespace rdk {

// The outputs in the order of their colours, `counts` of each. A colour's filters stand as strips [kh, kw][16]; what
// is left, if at most eight, as [kh, kw][8].
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
  int64_t packed_floats() const {
    int64_t columns = 0;
    for (int64_t k = 0; k < colours; ++k) columns += columns_of_colour(counts[k]);
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
    clear_outside(ring, colours * slots, 1, columns);
    std::vector<Segment> segments;
    int64_t next = std::max<int64_t>(0, t.y0 * g.stride_h - g.top);
    for (int64_t y = t.y0; y < t.y1; ++y) {
      const Taps taps = taps_of(g, kh, x.h, y);
      const int64_t end = taps.begin < taps.end ? taps.row0 + (taps.end - 1) * g.dilation_h + 1 : next;
      for (next = std::max(next, taps.row0); next < end; ++next) {
        if (columns.real()) make_colours(t.image, next, columns, planes, ring + next % slots * whole, slots * whole);
      }
      const float* b = packed + colours * x.c;
      for (int64_t k = 0, first = 0; k < colours; first += counts[k], ++k) {
        push_windows(segments, ring + k * slots * whole, slots, whole, taps);
        b = filter(segments, b, counts[k], taps, t.width(), buffer + first, row);
      }
      finish(out, t.image, y, t.x0, t.width(), buffer, row, 0, out.y.c);
    }
  }

 private:
  void push_windows(std::vector<Segment>& to, const float* ring, int64_t slots, int64_t whole, const Taps& taps) const {
    to.clear();
    for (int64_t i = taps.begin; i < taps.end; ++i) {
      const float* const line = ring + (taps.row0 + i * g.dilation_h) % slots * whole;
      if (g.dilation_w == 1) {
        to.push_back({line, g.stride_w, kw});
      } else {
        for (int64_t j = 0; j < kw; ++j) to.push_back({line + j * g.dilation_w, g.stride_w, 1});
      }
    }
  }

  // One colour's outputs, whose last strip may write past them: the next colour writes there later. Returns the next
  // colour's filters.
  const float* filter(const std::vector<Segment>& windows, const float* b, int64_t count, const Taps& taps,
                      int64_t pixels, float* to, int64_t row) const {
    const int64_t strip = kVec * kh * kw, rest = count % kVec, half = rest > 0 && rest <= kHalf;
    const int64_t strips = count / kVec + (rest > kHalf);
    Product p{windows.data(), int(windows.size()), b + kVec * taps.begin * kw, strip};
    product(p, pixels, strips, ToRows{to, row});
    b += strips * strip;
    if (!half) return b;
    p.b = b + kHalf * taps.begin * kw;
    half_product(p, pixels, to + strips * kVec, row);
    return b + kHalf * kh * kw;
  }

  // Row `r` of x as a line of every colour, `apart` one from the next.
  void make_colours(int64_t image, int64_t r, const Span& columns, float* planes, float* to, int64_t apart) const {
    const T* const from = x.at(image, r, columns.begin);
    const int64_t width = columns.real(), plane = width + kVec;
    const float* line = planes;
    int64_t line_apart = plane;
    if (std::is_same_v<T, float> && x.w_stride == 1) {
      line = reinterpret_cast<const float*>(from), line_apart = x.c_stride;
    } else {
      for (int64_t c = 0; c < x.c; ++c) {
        for (int64_t i = 0; i < width; ++i) planes[c * plane + i] = to_float(from[i * x.w_stride + c * x.c_stride]);
      }
    }
    for (int64_t k = 0; k < colours; ++k) {
      float* const out_line = to + k * apart + columns.left;
      const float* const mix = packed + k * x.c;
      int64_t i = 0;
      for (; i + kVec <= width; i += kVec) {
        V16 sum{};
        for (int64_t c = 0; c < x.c; ++c) {
          const V16 v = load16(line + c * line_apart + i);
          RDK_UNROLL for (int l = 0; l < kRegs; ++l) sum.r[l] += splat(mix[c]) * v.r[l];
        }
        store16(out_line + i, sum);
      }
      for (; i < width; ++i) {
        float sum = 0;
        for (int64_t c = 0; c < x.c; ++c) sum += mix[c] * line[c * line_apart + i];
        out_line[i] = sum;
      }
    }
  }
};

}  // namespace rdk
