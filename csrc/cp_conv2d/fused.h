// The CP convolution in one pass, a step of output rows at a time: the inner products of the input rows go to a ring,
// the depthwise lines make the step's rank rows from it, and the outer product sums over all ranks in registers.
#pragma once

#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "common/ring.h"
#include "cp_conv2d/depthwise.h"

namespace rdk {

template <class T>
struct CP {
  Image<const T> x;
  Output<T> out;
  Geometry g;
  int64_t kh, kw;
  Panels panels;
  const float*
      packed;  // inner as strips [R][C]; vertical [kh][R] and horizontal [kw][R], R in whole strips; outer [O][R]
  Kept kept_inner, kept_lines;

  static int64_t packed_floats(int64_t c, int64_t o, int64_t ranks, int64_t kh, int64_t kw) {
    return ceil_to(ranks, kVec) * (c + kh + kw) + ceil_to(o, kVec) * ranks;
  }

  Tiles tiles(int64_t threads) const {
    const int64_t rows = g.dilation_h * (kh - 1) + 2, line = panels.floats(rows) + 3 * kPanel + x.c;
    const int64_t most = std::max<int64_t>(1, (2 * kLineFloats / line - kw * g.dilation_w) / g.stride_w);
    const double halo = double(g.dilation_h * (kh - 1)) / double(g.stride_h);
    const double inner = double(x.c * g.stride_h) / double(x.c * g.stride_h + out.y.c);
    return Tiles(x.n, out.y.h, out.y.w, most, halo * inner, threads);
  }

  void run(const Tile& t) const {
    const Span columns = columns_of(g, kw, x.w, t), owned = owned_columns(g, columns, t, out.y.w, x.w);
    const int64_t step = step_rows(t), pixels = step * t.width();
    RankRing<T> ring(x, g, kh, out.y.h, t, columns, panels, packed, false, kept_inner, owned);
    float* const map = Scratch::floats(2, size_t(panels.floats(pixels) + columns.whole() * kPanel));
    float* const zeros = Scratch::floats(3, size_t((columns.whole() + t.width()) * kPanel));
    float* const buffer = zeros + columns.whole() * kPanel;
    std::fill_n(zeros, columns.whole() * kPanel, 0.0f);
    std::vector<const float*> lines(size_t(kh), zeros);
    std::vector<Segment> segments;
    const int64_t ranks = ceil_to(panels.ranks, kVec);
    const float* const taps = packed + ranks * x.c;
    for (int64_t y = t.y0; y < t.y1; y += step) {
      const int64_t rows = std::min(step, t.y1 - y);
      ring.advance(y + rows);
      for (int64_t p = 0; p < panels.count(); ++p) {
        for (int64_t r = 0; r < rows; ++r) {
          const Taps real = taps_of(g, kh, x.h, y + r);
          for (int64_t k = 0; k < kh; ++k) {
            const bool is = k >= real.begin && k < real.end && columns.real() > 0;
            lines[size_t(k)] = is ? ring.row(p, real.row0 + k * g.dilation_h) : zeros;
          }
          const float* const down = taps + p * kPanel;
          float* const to = panels.of(map, p, pixels) + r * t.width() * panels.width(p);
          depthwise({lines.data(), panels.width(p), columns, g, kh, kw, down, down + kh * ranks, ranks}, t.width(),
                    map + panels.floats(pixels), to);
          kept_lines.put(t.image, y + r, t.x0, t.x1, panels, p, to);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        segments.clear();
        for (int64_t p = 0; p < panels.count(); ++p) {
          const int64_t width = panels.width(p);
          segments.push_back({panels.of(map, p, pixels) + r * t.width() * width, width, panels.own(p)});
        }
        const Product up{segments.data(), int(segments.size()), taps + (kh + kw) * ranks, kVec * panels.ranks};
        product_to(out, up, t.image, y + r, t.x0, t.width(), out.y.c, buffer);
      }
    }
  }
};

}  // namespace rdk
