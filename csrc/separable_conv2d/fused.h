// The separable convolution in one pass, a step of output rows at a time: the vertical stage reads kh lines of x and
// makes the step's rank rows, the horizontal stage reads those with kw overlapping pixels. Both are products.
#pragma once

#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"

namespace rdk {

template <class T>
struct Separable {
  Image<const T> x;
  Output<T> out;
  Geometry g;
  int64_t kh, kw;
  Panels panels;
  const float* packed;  // vertical as strips [R][kh, C], then horizontal as strips [O][panel, kw, rank]
  Kept kept;

  static int64_t packed_floats(int64_t c, int64_t o, int64_t ranks, int64_t kh, int64_t kw) {
    return kVec * (strips_of(ranks) * kh * c + strips_of(o) * kw * ranks);
  }

  Tiles tiles(int64_t threads) const {
    const int64_t line = panels.floats(1) + (std::is_same_v<T, float> && x.c_stride == 1 ? 0 : x.c * kh);
    const int64_t most = std::max<int64_t>(1, (kLineFloats / line - kw * g.dilation_w) / g.stride_w);
    return Tiles(x.n, out.y.h, out.y.w, most, 0.1, threads);
  }

  void run(const Tile& t) const {
    const Span columns = columns_of(g, kw, x.w, t), owned = owned_columns(g, columns, t, out.y.w, x.w);
    const int64_t step = step_rows(t), pixels = step * columns.whole();
    Lines<T> lines(x, t.image, columns, (step - 1) * g.stride_h + g.dilation_h * (kh - 1) + 1, nullptr, 0);
    float* const map = Scratch::floats(1, size_t(panels.floats(pixels)));
    float* const buffer = Scratch::floats(3, size_t(t.width() * kPanel));
    for (int64_t p = 0; p < panels.count(); ++p) {
      clear_outside(panels.of(map, p, pixels), step, panels.width(p), columns);
    }
    std::vector<Segment> segments;
    for (int64_t y = t.y0; y < t.y1; y += step) {
      const int64_t rows = std::min(step, t.y1 - y);
      for (int64_t p = 0; p < panels.count() && columns.real(); ++p) {
        for (int64_t r = 0; r < rows; ++r) {
          float* const to = panels.of(map, p, pixels) + (r * columns.whole() + columns.left) * panels.width(p);
          vertical(lines, columns, y + r, p, to, segments);
          kept.put(t.image, y + r, owned.begin, owned.end, panels, p,
                   to + (owned.begin - columns.begin) * panels.width(p));
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        segments.clear();
        for (int64_t p = 0; p < panels.count(); ++p) {
          push_line(segments, panels.of(map, p, pixels) + r * columns.whole() * panels.width(p), panels, p, g, kw);
        }
        const Product product{segments.data(), int(segments.size()), packed + kVec * strips_of(panels.ranks) * kh * x.c,
                              kVec * kw * panels.ranks};
        product_to(out, product, t.image, y + r, t.x0, t.width(), out.y.c, buffer);
      }
    }
  }

 private:
  // Panel `p` of the rank row of output row `y`.
  void vertical(Lines<T>& lines, const Span& columns, int64_t y, int64_t p, float* to,
                std::vector<Segment>& segments) const {
    const Taps taps = taps_of(g, kh, x.h, y);
    segments.clear();
    for (int64_t k = taps.begin; k < taps.end; ++k) {
      segments.push_back({lines.row(taps.row0 + k * g.dilation_h), lines.pixel(), x.c});
    }
    const int64_t strip = kVec * kh * x.c;
    const float* const b = packed + p * kBlockStrips * strip + kVec * taps.begin * x.c;
    Product down{segments.data(), int(segments.size()), b, strip};
    if (p == 0) down.next = lines.ahead(taps.row0 + (kh - 1) * g.dilation_h + g.stride_h);
    product(down, columns.real(), panels.strips(p), ToRows{to, panels.width(p)});
  }
};

}  // namespace rdk
