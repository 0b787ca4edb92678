// Gradients of the two depthwise lines for stride 1, from the inner products t and the gradient dz of the rank rows:
//   dhorizontal[j] = sum dz[y, x] u[y, x + j],  u = the vertical line over t
//   dvertical[i]   = sum w[y, x] t[y + i, x],   w = the horizontal line over dz, turned round
// One pass over both maps; sixteen ranks are a task, summed row by row in fp32, over rows in double.
#pragma once

#include <cstdint>
#include <vector>

#include "common/conv.h"
#include "common/epilogue.h"
#include "cp_conv2d/depthwise.h"

// As many as the taps that have code of their own; where their number is not known more would only be larger.
#define RDK_UNROLL_TAPS _Pragma("GCC unroll 10")

namespace rdk {

struct LineGrads {
  const float* t;   // [N, H, W, R]
  const float* dz;  // [N, OH, OW, R]
  int64_t n, h, w, out_h, out_w, ranks;
  int64_t top, left, dilation_h, dilation_w, kh, kw;
  const float* taps;  // vertical [kh][row], then horizontal [kw][row], row = the ranks in whole strips
  float* grads;       // likewise

  int64_t tasks() const { return strips_of(ranks); }

  void run(int64_t task) const {
    if (kh == 3 && kw == 3) return run_taps<3, 3>(task);
    if (kh == 5 && kw == 5) return run_taps<5, 5>(task);
    run_taps<0, 0>(task);
  }

 private:
  // KH by KW taps in registers; 0: any number, in memory.
  template <int KH, int KW>
  void run_taps(int64_t task) const {
    const int64_t first = task * kVec, row = ceil_to(ranks, kVec), taps_down = KH ? KH : kh, taps_across = KW ? KW : kw;
    const int lanes = int(std::min<int64_t>(kVec, ranks - first));
    std::vector<double> total(size_t((kh + kw) * kVec));
    std::vector<V16> memory(KH ? 0 : size_t(3 * (kh + kw)));
    V16 registers[KH ? 3 * (KH + KW) : 1];
    V16* const line = KH ? registers : memory.data();  // the taps, vertical then horizontal
    V16* const sum = line + taps_down + taps_across;   // their gradients along a row
    V16* const value = sum + taps_down + taps_across;  // t down, dz across
    RDK_UNROLL_TAPS for (int64_t k = 0; k < taps_down + taps_across; ++k) line[k] = load16(taps + k * row + first);
    for (int64_t image = 0; image < n; ++image) {
      for (int64_t y = 0; y < out_h; ++y) {
        RDK_UNROLL_TAPS for (int64_t k = 0; k < taps_down + taps_across; ++k) sum[k] = V16{};
        const float* const from = dz + ((image * out_h + y) * out_w) * ranks + first;
        for (int64_t x = 0; x < w; ++x) {
          V16 u{}, v{};
          RDK_UNROLL_TAPS for (int64_t i = 0; i < taps_down; ++i) {
            const int64_t r = y - top + i * dilation_h;
            value[i] = r >= 0 && r < h ? at(t + ((image * h + r) * w + x) * ranks + first, lanes) : V16{};
            u = multiply_add(line[i], value[i], u);
          }
          RDK_UNROLL_TAPS for (int64_t j = 0; j < taps_across; ++j) {
            const int64_t c = x + left - j * dilation_w;
            V16& d = value[taps_down + j];
            d = c >= 0 && c < out_w ? at(from + c * ranks, lanes) : V16{};
            v = multiply_add(line[taps_down + j], d, v);
          }
          // a tap outside adds nothing, also where the other side is NaN
          RDK_UNROLL_TAPS for (int64_t i = 0; i < taps_down; ++i) {
            const int64_t r = y - top + i * dilation_h;
            if (r >= 0 && r < h) sum[i] = multiply_add(v, value[i], sum[i]);
          }
          RDK_UNROLL_TAPS for (int64_t j = 0; j < taps_across; ++j) {
            const int64_t c = x + left - j * dilation_w;
            if (c >= 0 && c < out_w) sum[taps_down + j] = multiply_add(u, value[taps_down + j], sum[taps_down + j]);
          }
        }
        for (int64_t k = 0; k < kh + kw; ++k) {
          alignas(64) float part[kVec];
          store16(part, sum[k]);
          for (int l = 0; l < kVec; ++l) total[size_t(k * kVec + l)] += part[l];
        }
      }
    }
    for (int64_t k = 0; k < kh + kw; ++k) {
      for (int l = 0; l < kVec; ++l) grads[k * row + first + l] = float(total[size_t(k * kVec + l)]);
    }
  }

  static V16 at(const float* p, int lanes) { return lanes == kVec ? load16(p) : load_first(p, lanes); }
};

}  // namespace rdk
