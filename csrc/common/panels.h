// A map of ranks between two stages: panels of a few strips of ranks, in each the pixels one after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/conv.h"
#include "common/product.h"

namespace rdk {

constexpr int64_t kPanel = kBlockStrips * kVec;  // ranks of a panel
constexpr int64_t kStepPixels = 112;             // about what one step makes: B's strips stay in L1 that long
constexpr int64_t kLineFloats = 192 << 10;       // of a task's lines together: they stay in L2

struct Panels {
  int64_t ranks;

  int64_t count() const { return (ranks + kPanel - 1) / kPanel; }
  int64_t own(int64_t p) const { return std::min(kPanel, ranks - p * kPanel); }  // ranks
  int64_t width(int64_t p) const { return ceil_to(own(p), kVec); }               // with the zeros that fill a strip
  int64_t strips(int64_t p) const { return width(p) / kVec; }
  int64_t floats(int64_t pixels) const { return ceil_to(ranks, kVec) * pixels; }
  // Panel `p` of a map of `pixels`.
  float* of(float* map, int64_t p, int64_t pixels) const { return map + p * kPanel * pixels; }
};

// Zeros in the columns of `pixels`-wide lines that do not exist.
inline void clear_outside(float* lines, int64_t count, int64_t width, const Span& columns) {
  for (int64_t i = 0; i < count; ++i, lines += columns.whole() * width) {
    std::fill_n(lines, columns.left * width, 0.0f);
    std::fill_n(lines + (columns.left + columns.real()) * width, columns.right * width, 0.0f);
  }
}

// The part of A that is one panel at the columns that a line of kw taps reads, `line` being column 0 of the panel.
// B's rows stand as [tap][rank].
inline void push_line(std::vector<Segment>& to, const float* line, const Panels& panels, int64_t p, const Geometry& g,
                      int64_t kw) {
  const int64_t width = panels.width(p), own = panels.own(p);
  if (g.dilation_w == 1 && own == width) {
    to.push_back({line, g.stride_w * width, kw * width});
  } else {
    for (int64_t k = 0; k < kw; ++k) to.push_back({line + k * g.dilation_w * width, g.stride_w * width, own});
  }
}

// A rank map that the backward wants, [N, R, H, W] with the ranks side by side; or null.
struct Kept {
  float* data = nullptr;
  int64_t ranks = 0, height = 0, width = 0;

  // Pixels [first, last) of a row from panel `p`, whose pixel `first` is at `from`, into the ranks of place `place`.
  void put(int64_t image, int64_t row, int64_t first, int64_t last, const Panels& panels, int64_t p, const float* from,
           int64_t place = 0) const {
    if (!data) return;
    float* to = data + ((image * height + row) * width + first) * ranks + place * panels.ranks + p * kPanel;
    for (int64_t i = first; i < last; ++i, to += ranks, from += panels.width(p)) {
      std::copy_n(from, panels.own(p), to);
    }
  }
};

// Output rows of one step.
inline int64_t step_rows(const Tile& t) {
  return std::clamp<int64_t>((kStepPixels + t.width() / 2) / t.width(), 1, t.y1 - t.y0);
}

// The part of `columns` that no other tile of the row keeps.
inline Span owned_columns(const Geometry& g, const Span& columns, const Tile& t, int64_t out_width, int64_t width) {
  const int64_t begin = t.x0 == 0 ? 0 : t.x0 * g.stride_w - g.left;
  const int64_t end = t.x1 == out_width ? width : t.x1 * g.stride_w - g.left;
  return {std::clamp(begin, columns.begin, columns.end), std::clamp(end, columns.begin, columns.end), 0, 0};
}

}  // namespace rdk
