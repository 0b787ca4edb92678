// The gradient of taps against plain loops in double, in buffers of exactly their size, with the driver's faults.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "common/tap_grads.h"
#include "epilogue_check.h"
#include "lowrank_case.h"
#include "tally.h"

namespace rdk {

struct TapCase {
  int64_t n, groups, r2, r1, h, w, out_h, out_w, kh, kw, top, left, dilation_h, dilation_w;
};

inline void check_taps(const TapCase& p) {
  Tally& tally = tallies["tap grads"];
  const int64_t c1 = p.groups * p.r1, c2 = p.groups * p.r2, count = p.kh * p.kw * c2 * p.r1;
  Draw draw(uint32_t(p.r1 * 31 + p.r2 * 7 + p.w));
  const std::vector<double> dz = draw.values(p.n * p.out_h * p.out_w * c2), t = draw.values(p.n * p.h * p.w * c1);
  std::vector<float> dz_given(dz.begin(), dz.end()), given(t.begin(), t.end());  // values() are exact floats
  if (fault == "value") {
    for (float& v : given) v = nudged(v);
  }
  if (fault == "load") given.pop_back(), given.shrink_to_fit();
  std::vector<float> grads(size_t(count - (fault == "store")), NAN), first;
  const TapGrads kernel{{dz_given.data(), p.n, c2, p.out_h, p.out_w, p.out_h * p.out_w * c2, 1, p.out_w * c2, c2},
                        {given.data(), p.n, c1, p.h, p.w, p.h * p.w * c1, 1, p.w * c1, c1},
                        p.groups,
                        p.kh,
                        p.kw,
                        p.top,
                        p.left,
                        p.dilation_h,
                        p.dilation_w,
                        grads.data()};
  for (const bool apart : {false, true}) {  // in one thread; in another order, each in a thread with fresh work memory
    std::fill(grads.begin(), grads.end(), NAN);
    std::vector<float> partial(size_t(kernel.partial_floats()), NAN);
    std::vector<int64_t> tasks(size_t(kernel.tasks() - (fault == "skip")));
    std::iota(tasks.begin(), tasks.end(), 0);
    if (apart) std::shuffle(tasks.begin(), tasks.end(), std::mt19937(5));
    const auto work = [&](size_t begin, size_t end) {
      std::thread([&, begin, end] {
        for (size_t i = begin; i < end; ++i) kernel.run(tasks[i], partial.data());
      }).join();
    };
    for (size_t i = 0; apart && i < tasks.size(); ++i) work(i, i + 1);
    if (!apart) work(0, tasks.size());
    kernel.add_parts(partial.data());
    if (!apart) first = grads;
  }
  tally.expect(!std::memcmp(first.data(), grads.data(), first.size() * sizeof(float)));
  ++tally.problems;

  const double roundings = double(std::min<int64_t>(p.n * p.out_h * p.out_w, 320 + p.n * p.out_h * p.out_w / 32) + 2);
  std::vector<float> turned(grads.size());
  turn_taps(grads.data(), p.kh * p.kw, c2 * p.r1, 0, c2 * p.r1, turned.data());
  for (int64_t flat = 0; flat < count; ++flat) {  // [i][j][g][q][rank]
    const int64_t rank = flat % p.r1, q = flat / p.r1 % c2, tap = flat / p.r1 / c2, g = q / p.r2;
    double value = 0, magnitude = 0;
    for (int64_t pixel = 0; pixel < p.n * p.out_h * p.out_w; ++pixel) {
      const int64_t image = pixel / p.out_w / p.out_h;
      const int64_t y = pixel / p.out_w % p.out_h + tap / p.kw * p.dilation_h - p.top;
      const int64_t x = pixel % p.out_w + tap % p.kw * p.dilation_w - p.left;
      if (y < 0 || y >= p.h || x < 0 || x >= p.w) continue;
      const double product =
          dz[size_t(pixel * c2 + q)] * t[size_t(((image * p.h + y) * p.w + x) * c1 + g * p.r1 + rank)];
      value += product, magnitude += std::fabs(product);
    }
    const float got = grads[size_t(flat)];
    tally.error(std::fabs(double(got) - value) / (roundings * 0x1p-24 * magnitude + 0x1p-126));
    tally.expect(!std::memcmp(&got, &turned[size_t(flat % (c2 * p.r1) * p.kh * p.kw + tap)], sizeof(float)));
  }
}

// images, groups, ranks, sizes of both maps, taps, zeros before, dilations: tails of every kind, several maps a block,
// rows of several blocks, several parts, a ring that goes round, taps that nothing reaches.
constexpr TapCase kTapCases[] = {
    {1, 1, 3, 5, 4, 6, 4, 6, 3, 3, 1, 1, 1, 1},       {9, 2, 16, 16, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1},
    {1, 1, 15, 35, 3, 400, 3, 400, 1, 3, 0, 1, 1, 1}, {2, 1, 2, 3, 70, 41, 68, 39, 3, 3, 1, 1, 2, 2},
    {1, 3, 31, 48, 7, 9, 5, 11, 5, 2, 2, 2, 1, 3},    {1, 1, 2, 17, 4, 4, 4, 4, 3, 5, 9, 1, 1, 1},
    {1, 1, 29, 64, 20, 13, 20, 13, 1, 1, 0, 0, 1, 1},
};

inline void check_tap_grads(size_t most) {
  for (size_t i = 0; i < std::min(most, std::size(kTapCases)); ++i) check_taps(kTapCases[i]);
}

}  // namespace rdk
