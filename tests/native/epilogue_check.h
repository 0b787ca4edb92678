// The parts that the low-rank kernels share, one by one: exp, erf and the activations against double, the conversions
// of the 16-bit types against their definition, partial vectors in buffers of exactly their size, and the two phases of
// a region.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/epilogue.h"
#include "common/phases.h"
#include "lowrank_case.h"
#include "tally.h"

namespace rdk {

// The value of a 16-bit pattern: `bits` of mantissa, exponents biased by `bias`.
template <class T>
struct Format {
  static constexpr int kBits = std::is_same_v<T, Half> ? 10 : 7, kBias = std::is_same_v<T, Half> ? 15 : 127;
  static constexpr int kInfinity = (2 * kBias + 1) << kBits;

  static double value(int pattern) {
    const int exponent = pattern >> kBits & (2 * kBias + 1), mantissa = pattern & ((1 << kBits) - 1);
    const double sign = pattern & 0x8000 ? -1 : 1;
    if (exponent == 2 * kBias + 1) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - kBias - kBits);
    return sign * std::ldexp(mantissa + (1 << kBits), exponent - kBias - kBits);
  }
  // The magnitude of a pattern, infinity being where the next number would be.
  static double place(int pattern) { return pattern == kInfinity ? std::ldexp(1.0, kBias + 1) : value(pattern); }

  // The nearest pattern, of two the even one; -1 for any NaN.
  static int rounded(float x) {
    if (std::isnan(x)) return -1;
    const double v = std::fabs(double(x));
    int low = 0, high = kInfinity;  // the last pattern at or below v
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      place(middle) <= v ? low = middle : high = middle - 1;
    }
    if (low < kInfinity) {
      const double below = v - place(low), above = place(low + 1) - v;
      if (above < below || (above == below && low % 2)) ++low;
    }
    return low | (std::signbit(x) ? 0x8000 : 0);
  }
};

inline float nudged(float x) { return fault == "value" ? x * 1.01f : x; }

// `fn` on all of x, sixteen at a time.
template <class Fn>
std::vector<float> in_lanes(std::vector<float> x, const Fn& fn) {
  for (float& v : x) v = nudged(v);
  x.resize(size_t(ceil_to(int64_t(x.size()), kVec)));
  for (size_t i = 0; i < x.size(); i += kVec) {
    V16 v = load16(&x[i]);
    for (F& r : v.r) r = fn(r);
    store16(&x[i], v);
  }
  return x;
}

inline void check_functions() {
  std::vector<float> x;
  for (int i = -96000; i <= 96000; i += 3) x.push_back(float(i) / 1000);
  for (float tiny : {0x1p-149f, 0x1p-126f, 1e-10f, 1e-4f, 0.0f}) x.push_back(tiny), x.push_back(-tiny);
  for (float large : {1e3f, 1e10f, 3e38f, INFINITY}) x.push_back(large), x.push_back(-large);
  const auto against = [&](const char* name, const std::vector<float>& got, const auto& share) {
    Tally& tally = tallies[name];
    for (size_t i = 0; i < x.size(); ++i) ++tally.problems, tally.error(share(x[i], double(got[i])));
  };
  against("exp", in_lanes(x, [](F v) { return exp(v); }), [](double v, double y) {
    if (v < -87.3f) return y == 0 ? 0.0 : 2.0;
    if (v > 88.0f) return y == INFINITY ? 0.0 : 2.0;
    return std::fabs(y / std::exp(v) - 1) / 0x1p-23;  // an ulp or two
  });
  against("erf", in_lanes(x, [](F v) { return erf(v); }),
          [](double v, double y) { return std::fabs(y - std::erf(v)) / 4.5e-7; });
  const auto activation = [&](const char* name, Activation kind, double relative) {
    against(name, in_lanes(x, [&](F v) { return activate(kind, v); }), [&](double v, double y) {
      if (std::isinf(v) && v < 0 && kind >= Activation::gelu) return std::isnan(y) ? 0.0 : 2.0;  // as torch: -inf * 0
      const double exact = activated(kind, v), bound = relative * std::min(std::fabs(v), 3e38) + 0x1p-126;
      return y == exact ? 0 : std::fabs(y - exact) / bound;
    });
  };
  activation("none", Activation::none, 0);
  activation("relu", Activation::relu, 0);
  activation("gelu", Activation::gelu, 0x1p-22);
  activation("silu", Activation::silu, 0x1p-22);
  for (Activation kind : {Activation::none, Activation::relu, Activation::gelu, Activation::silu}) {
    for (float y : in_lanes({NAN, -NAN}, [&](F v) { return select((I)(v != v), activate(kind, v), splat(NAN)); })) {
      tallies["none"].expect(std::isnan(y));
    }
  }
}

template <class T>
void check_conversions(const std::string& name) {
  Tally &to = tallies[name + " loads"], &from = tallies[name + " stores"];
  const std::vector<T> patterns = [] {
    std::vector<T> all(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) all[size_t(i)].bits = uint16_t(i);
    return all;
  }();
  for (int i = 0; i < 1 << 16; i += kVec) {
    float lanes[3][kVec];
    store16(lanes[0], load16(&patterns[size_t(i)]));
    store16(lanes[1], get16(&patterns[size_t(i)], 1, kVec));
    for (int l = 0; l < kVec; ++l) lanes[2][l] = to_float(patterns[size_t(i + l)]);
    for (int l = 0; l < kVec; ++l) {
      const double value = Format<T>::value(i + l);
      ++to.problems;
      for (const auto& got : lanes) {
        const float y = nudged(got[l]);
        to.expect(std::isnan(value) ? std::isnan(y) : y == value && std::signbit(y) == std::signbit(value));
      }
    }
  }
  std::vector<float> x = {INFINITY, NAN, 0x1p-149f, 0x1p-126f, 3.402823466e38f, 0x1p-127f, 65519.99f, 0x1.fep127f};
  for (uint32_t nan : {0x7f800001u, 0x7fffffffu, 0x7fc00000u, 0x7f80ffffu}) {
    x.emplace_back();
    std::memcpy(&x.back(), &nan, 4);
  }
  for (int i = 0; i < Format<T>::kInfinity; ++i) {  // every number, the tie above it, and the floats beside that
    const float tie = float((Format<T>::place(i) + Format<T>::place(i + 1)) / 2);
    x.insert(x.end(), {float(Format<T>::value(i)), tie, std::nextafter(tie, 0.0f), std::nextafter(tie, INFINITY)});
  }
  x.resize(size_t(ceil_to(int64_t(x.size()), kVec)));
  for (size_t i = 0; i < x.size(); i += kVec) {
    for (const float sign : {1.0f, -1.0f}) {
      float lanes[kVec];
      for (size_t l = 0; l < kVec; ++l) lanes[l] = std::copysign(x[i + l], sign);
      std::vector<T> near(kVec), apart(3 * kVec);
      put16(near.data(), 1, load16(lanes), kVec);
      put16(apart.data(), 3, load16(lanes), kVec);
      for (size_t l = 0; l < kVec; ++l) {
        const int exact = Format<T>::rounded(nudged(lanes[l]));
        ++from.problems;
        for (const T got : {near[l], apart[3 * l]}) {
          from.expect(exact < 0 ? std::isnan(Format<T>::value(got.bits)) : got.bits == exact);
        }
      }
    }
  }
}

// n lanes to and from buffers that end with the last of them.
template <class T>
void check_partial(Tally& tally) {
  for (int n = 1; n <= kVec; ++n) {
    for (const int64_t stride : {1, 3}) {
      ++tally.problems;
      std::vector<T> data(size_t((n - 1) * stride + 1));
      float lanes[kVec], back[kVec];
      for (int l = 0; l < kVec; ++l) lanes[l] = float(l + 1);
      put16(data.data(), stride, load16(lanes), n);
      store16(back, get16(data.data(), stride, n));
      for (int l = 0; l < kVec; ++l) tally.expect(nudged(back[l]) == (l < n ? float(l + 1) : 0.0f));
      for (size_t i = 0; i < data.size(); ++i) tally.expect(i % size_t(stride) == 0 || to_float(data[i]) == 0);
      if constexpr (std::is_same_v<T, float>) {
        std::vector<float> first(static_cast<size_t>(n));
        store_first(first.data(), load16(lanes), n);
        store16(back, load_first(first.data(), n));
        for (int l = 0; l < kVec; ++l) tally.expect(back[l] == (l < n ? float(l + 1) : 0.0f));
      }
    }
  }
}

// Every task once, each of the second lot after all of the first; a task that throws ends its thread alone.
inline void check_phases(int threads, int64_t first, int64_t second, int64_t thrower) {
  Tally& tally = tallies["phases"];
  ++tally.problems;
  Phases phases(fault == "value" ? std::max<int64_t>(0, first - 1) : first, second);
  std::vector<int> ones(static_cast<size_t>(first)), twos(static_cast<size_t>(second));  // plain: ordered by the phases
  std::vector<std::future<bool>> done;
  std::atomic<int64_t> early{0};
  for (int t = 0; t < threads; ++t) {
    done.push_back(std::async(std::launch::async, [&] {
      try {
        phases.work(
            [&](int64_t i) {
              if (i == thrower) throw std::runtime_error("a task");
              ++ones[size_t(i)];
            },
            [&](int64_t i) {
              if (first + i == thrower) throw std::runtime_error("a task");
              for (int64_t k = 0; k < first; ++k) early += ones[size_t(k)] != 1 && k != thrower;
              ++twos[size_t(i)];
            });
      } catch (const std::runtime_error&) {
        return true;
      }
      return false;
    }));
  }
  int thrown = 0;
  for (auto& thread : done) {
    if (thread.wait_for(std::chrono::seconds(120)) != std::future_status::ready) {
      std::printf("phases: a thread waits for ever\n");
      std::fflush(stdout);
      std::_Exit(1);
    }
    thrown += thread.get();
  }
  const bool throws = thrower >= 0 && thrower < first + second;
  tally.expect(early == 0 && thrown == int(throws));
  if (throws && threads == 1) return;  // what came after it nobody did
  for (int64_t i = 0; i < first; ++i) tally.expect(ones[size_t(i)] == (i != thrower));
  for (int64_t i = 0; i < second; ++i) tally.expect(twos[size_t(i)] == (first + i != thrower));
}

inline void check_parts() {
  check_functions();
  check_conversions<BFloat16>("bf16");
  check_conversions<Half>("fp16");
  for (auto* check : {check_partial<float>, check_partial<BFloat16>, check_partial<Half>}) check(tallies["partial"]);
  for (int threads : {1, 2, 4}) {
    for (int repeat = 0; repeat < 8; ++repeat) {
      for (const int64_t thrower : {-1, 0, 5, 36, 37, 50}) check_phases(threads, 37, 53, thrower);
      check_phases(threads, 0, 9, -1), check_phases(threads, 9, 0, -1);
    }
  }
}

}  // namespace rdk
