// The two depthwise lines of one output row and one panel of ranks: kh taps down, kw taps across.
#pragma once

#include "common/conv.h"
#include "common/vec.h"

namespace rdk {

struct Depthwise {
  const float* const*
      lines;      // of each tap down, column columns.begin of the panel; a line of zeros where there is none
  int64_t width;  // ranks of the panel: whole strips
  Span columns;
  Geometry g;
  int64_t kh, kw;
  const float* down;    // [kh][tap_row], the panel's first rank
  const float* across;  // [kw][tap_row]
  int64_t tap_row;
};

RDK_INLINE V16 scaled(V16 a, V16 b) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) a.r[i] *= b.r[i];
  return a;
}
RDK_INLINE V16 multiply_add(V16 a, V16 b, V16 c) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) c.r[i] += a.r[i] * b.r[i];
  return c;
}

// Stride and dilation 1: what the taps down make of a column stays in registers while the taps across pass over it.
template <int KH, int KW>
void depthwise_near(const Depthwise& d, int64_t count, float* out) {
  for (int64_t s = 0; s < d.width; s += kVec) {
    V16 down[KH], across[KW], window[KW];
    const float* line[KH];
    RDK_UNROLL for (int k = 0; k < KH; ++k) down[k] = load16(d.down + k * d.tap_row + s), line[k] = d.lines[k] + s;
    RDK_UNROLL for (int k = 0; k < KW; ++k) across[k] = load16(d.across + k * d.tap_row + s), window[k] = V16{};
    const auto column = [&](int64_t j) RDK_LAMBDA {
      V16 sum = scaled(down[0], load16(line[0] + j * d.width));
      RDK_UNROLL for (int k = 1; k < KH; ++k) sum = multiply_add(down[k], load16(line[k] + j * d.width), sum);
      return sum;
    };
    const auto push = [&](V16 v) RDK_LAMBDA {
      RDK_UNROLL for (int k = 0; k + 1 < KW; ++k) window[k] = window[k + 1];
      window[KW - 1] = v;
    };
    const auto emit = [&](int64_t x) RDK_LAMBDA {
      V16 sum = scaled(across[0], window[0]);
      RDK_UNROLL for (int k = 1; k < KW; ++k) sum = multiply_add(across[k], window[k], sum);
      store16(out + x * d.width + s, sum);
    };
    // column j of the line, counted from columns.begin, completes output j + left - (KW - 1)
    const int64_t left = d.columns.left, real = d.columns.real();
    int64_t j = 0, x = left - (KW - 1);
    for (; j < real && x < 0; ++j, ++x) push(column(j));
    for (; x < 0; ++x) push(V16{});
    const int64_t inside = std::min(count, x + real - j);
    for (; x < inside; ++x, ++j) push(column(j)), emit(x);
    for (; x < count; ++x) push(V16{}), emit(x);
  }
}

// Any stride and dilation, by way of a line of what the taps down make.
inline void depthwise_any(const Depthwise& d, int64_t count, float* line, float* out) {
  const int64_t width = d.width;
  std::fill_n(line, d.columns.left * width, 0.0f);
  std::fill_n(line + (d.columns.left + d.columns.real()) * width, d.columns.right * width, 0.0f);
  for (int64_t s = 0; s < width; s += kVec) {
    float* to = line + d.columns.left * width + s;
    for (int64_t j = 0; j < d.columns.real(); ++j) {
      V16 sum{};
      for (int64_t k = 0; k < d.kh; ++k) {
        sum = multiply_add(load16(d.down + k * d.tap_row + s), load16(d.lines[k] + j * width + s), sum);
      }
      store16(to + j * width, sum);
    }
    for (int64_t x = 0; x < count; ++x) {
      const float* from = line + x * d.g.stride_w * width + s;
      V16 sum{};
      for (int64_t k = 0; k < d.kw; ++k) {
        sum = multiply_add(load16(d.across + k * d.tap_row + s), load16(from + k * d.g.dilation_w * width), sum);
      }
      store16(out + x * width + s, sum);
    }
  }
}

inline void depthwise(const Depthwise& d, int64_t count, float* line, float* out) {
  if (d.g.stride_w == 1 && d.g.dilation_w == 1 && d.kh == d.kw) {
    if (d.kh == 3) return depthwise_near<3, 3>(d, count, out);
    if (d.kh == 5) return depthwise_near<5, 5>(d, count, out);
  }
  depthwise_any(d, count, line, out);
}

}  // namespace rdk
