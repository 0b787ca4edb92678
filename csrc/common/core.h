// The middle of a Tucker-2 chain in one pass, for one pair of channel clusters or for several: inner products of the
// input rows in a ring, the kh x kw core as one product over the ring's lines, the outer product over all pairs.
#pragma once

#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"
#include "common/ring.h"

namespace rdk {

// Packed, one after another: per pair of clusters (g, h) the inner factor as strips [K1][C/G]; per pair the core as
// strips [K2][kh, panel, kw, rank]; per h the outer factor as strips [O/H][g, K2].
template <class T>
struct TuckerChain {
  Image<const T> x;
  Output<T> out;
  Geometry g;
  int64_t kh, kw;
  Panels first, second;  // ranks K1 and K2 of a pair
  Clusters clusters;
  const float* packed;
  Kept kept_first, kept_second;

  int64_t inner_floats() const { return ceil_to(first.ranks, kVec) * (x.c / clusters.inputs); }
  int64_t core_floats() const { return ceil_to(second.ranks, kVec) * kh * kw * first.ranks; }
  int64_t outer_strip() const { return kVec * clusters.inputs * second.ranks; }
  int64_t columns_out() const { return out.y.c / clusters.outputs; }
  int64_t packed_floats() const {
    return clusters.pairs() * (inner_floats() + core_floats()) +
           clusters.outputs * strips_of(columns_out()) * outer_strip();
  }

  Tiles tiles(int64_t threads) const {
    const int64_t rows = g.dilation_h * (kh - 1) + 2, pairs = clusters.pairs();
    const int64_t line = pairs * (first.floats(rows) + second.floats(2)) + x.c;
    const int64_t most = std::max<int64_t>(1, (2 * kLineFloats / line - kw * g.dilation_w) / g.stride_w);
    const double inner = double(pairs * inner_floats() * g.stride_h);
    const double rest = double(pairs * core_floats() + clusters.outputs * strips_of(columns_out()) * outer_strip());
    const double halo = double(g.dilation_h * (kh - 1)) / double(g.stride_h);
    return Tiles(x.n, out.y.h, out.y.w, most, halo * inner / (inner + rest), threads);
  }

  void run(const Tile& t) const {
    const Span columns = columns_of(g, kw, x.w, t), owned = owned_columns(g, columns, t, out.y.w, x.w);
    const int64_t step = step_rows(t), pixels = step * t.width(), pairs = clusters.pairs();
    RankRing<T> ring(x, g, kh, out.y.h, t, columns, first, packed, true, kept_first, owned, clusters);
    float* const map = Scratch::floats(2, size_t(pairs * second.floats(pixels)));
    float* const buffer = Scratch::floats(3, size_t(t.width() * kPanel));
    std::vector<Segment> segments;
    for (int64_t y = t.y0; y < t.y1; y += step) {
      const int64_t rows = std::min(step, t.y1 - y);
      ring.advance(y + rows);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        for (int64_t q = 0; q < second.count(); ++q) {
          for (int64_t r = 0; r < rows; ++r) {
            float* const to =
                second.of(map + pair * second.floats(pixels), q, pixels) + r * t.width() * second.width(q);
            core(ring, t, y + r, pair, q, to, segments);
            kept_second.put(t.image, y + r, t.x0, t.x1, second, q, to, clusters.place(pair));
          }
        }
      }
      const float* up = packed + pairs * (inner_floats() + core_floats());
      for (int64_t h = 0; h < clusters.outputs; ++h, up += strips_of(columns_out()) * outer_strip()) {
        for (int64_t r = 0; r < rows; ++r) {
          segments.clear();
          for (int64_t i = 0; i < clusters.inputs; ++i) {
            float* const own = map + (i * clusters.outputs + h) * second.floats(pixels);
            for (int64_t q = 0; q < second.count(); ++q) {
              const int64_t width = second.width(q);
              segments.push_back({second.of(own, q, pixels) + r * t.width() * width, width, second.own(q)});
            }
          }
          const Product outer{segments.data(), int(segments.size()), up, outer_strip()};
          product_to(out, outer, t.image, y + r, t.x0, t.width(), columns_out(), buffer, h * columns_out());
        }
      }
    }
  }

 private:
  // Panel `q` of a pair's second ranks, one output row.
  void core(const RankRing<T>& ring, const Tile& t, int64_t y, int64_t pair, int64_t q, float* to,
            std::vector<Segment>& segments) const {
    const Taps taps = taps_of(g, kh, x.h, y);
    segments.clear();
    for (int64_t k = taps.begin; k < taps.end; ++k) {
      for (int64_t p = 0; p < first.count(); ++p) {
        push_line(segments, ring.row(p, taps.row0 + k * g.dilation_h, pair), first, p, g, kw);
      }
    }
    const int64_t strip = kVec * kh * kw * first.ranks;
    const float* const b = packed + clusters.pairs() * inner_floats() + pair * core_floats() + q * kBlockStrips * strip;
    product(Product{segments.data(), int(segments.size()), b + kVec * taps.begin * kw * first.ranks, strip}, t.width(),
            second.strips(q), ToRows{to, second.width(q)});
  }
};

}  // namespace rdk
