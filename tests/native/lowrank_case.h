// The low-rank chains by their definition: a dense weight from the factors, plain loops in double, and the factors
// packed again from what the kernels' comments say of their order.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "common/epilogue.h"
#include "common/panels.h"

namespace rdk {

struct Conv {
  int64_t n, c, h, w, o, kh, kw;
  Geometry g;
  int64_t r1, r2;  // ranks; r1 is also how many colours
  int64_t gi, go;  // clusters of input and output channels
  int x_as, y_as;  // layouts
  Activation act;
  bool bias, residual;

  int64_t out_h() const { return (h + g.top + g.bottom - g.dilation_h * (kh - 1) - 1) / g.stride_h + 1; }
  int64_t out_w() const { return (w + g.left + g.right - g.dilation_w * (kw - 1) - 1) / g.stride_w + 1; }
};

struct Exact {
  double value = 0, magnitude = 0;
  int64_t terms = 0;
};

// Values of few bits, so that every dtype holds them and one exact result serves all.
class Draw {
 public:
  explicit Draw(uint32_t seed) : random_(seed) {}
  double operator()() { return double(std::uniform_int_distribution<int>(-100, 100)(random_)) / 32; }
  std::vector<double> values(int64_t count) {
    std::vector<double> v(static_cast<size_t>(count));
    for (double& x : v) x = (*this)();
    return v;
  }
  // Factors have all the bits of fp32.
  std::vector<double> factor(int64_t count, int64_t fan) {
    std::vector<double> v(static_cast<size_t>(count));
    for (double& x : v) x = float(std::normal_distribution<double>(0, 1 / std::sqrt(double(fan)))(random_));
    return v;
  }
  std::vector<int64_t> permutation(int64_t count) {
    std::vector<int64_t> v(static_cast<size_t>(count));
    std::iota(v.begin(), v.end(), 0);
    std::shuffle(v.begin(), v.end(), random_);
    return v;
  }

 private:
  std::mt19937 random_;
};

// An array [.., .., ..] by its sizes, the last index fastest.
struct Array {
  std::vector<double> data;
  std::vector<int64_t> sizes;
  template <class... At>
  double operator()(At... at) const {
    size_t flat = 0, d = 0;
    ((flat = flat * size_t(sizes[d++]) + size_t(at)), ...);
    return data[flat];
  }
};

inline Array factor(Draw& draw, int64_t fan, std::vector<int64_t> sizes) {
  const int64_t count = std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<>());
  return {draw.factor(count, fan), std::move(sizes)};
}

// A dense weight [o][c][kh][kw], what its sums are made of, and how many roundings the chain has for it.
struct Dense {
  int64_t o, c, kh, kw;
  Geometry g;
  int64_t terms;
  std::vector<double> w, magnitude;

  Dense(int64_t o, int64_t c, int64_t kh, int64_t kw, const Geometry& g, int64_t terms)
      : o(o), c(c), kh(kh), kw(kw), g(g), terms(terms), w(size_t(o * c * kh * kw)), magnitude(w.size()) {}
  void add(int64_t to, int64_t from, int64_t i, int64_t j, double value) {
    const size_t at = size_t(((to * c + from) * kh + i) * kw + j);
    w[at] += value, magnitude[at] += std::fabs(value);
  }
};

// [n][o][oh][ow] from x as [n][c][h][w].
inline std::vector<Exact> convolve(const Dense& d, const std::vector<double>& x, int64_t n, int64_t h, int64_t w,
                                   int64_t oh, int64_t ow) {
  std::vector<Exact> y(size_t(n * d.o * oh * ow));
  size_t at = 0;
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t to = 0; to < d.o; ++to) {
      for (int64_t row = 0; row < oh; ++row) {
        for (int64_t column = 0; column < ow; ++column, ++at) {
          for (int64_t i = 0; i < d.kh; ++i) {
            const int64_t r = row * d.g.stride_h - d.g.top + i * d.g.dilation_h;
            for (int64_t j = 0; r >= 0 && r < h && j < d.kw; ++j) {
              const int64_t s = column * d.g.stride_w - d.g.left + j * d.g.dilation_w;
              for (int64_t from = 0; s >= 0 && s < w && from < d.c; ++from) {
                const double v = x[size_t(((image * d.c + from) * h + r) * w + s)];
                const size_t tap = size_t(((to * d.c + from) * d.kh + i) * d.kw + j);
                y[at].value += d.w[tap] * v, y[at].magnitude += d.magnitude[tap] * std::fabs(v);
              }
            }
          }
          y[at].terms = d.terms;
        }
      }
    }
  }
  return y;
}

inline double activated(Activation kind, double x) {
  switch (kind) {
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

// -- packing: strips of sixteen columns, each [depth][16], zeros beyond the columns
using Floats = std::vector<float>;

template <class At>
void strips(Floats& to, int64_t depth, int64_t columns, const At& at, int64_t wide = 16) {
  for (int64_t strip = 0; strip * wide < columns; ++strip) {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t lane = 0; lane < wide; ++lane) {
        const int64_t column = strip * wide + lane;
        to.push_back(column < columns ? float(at(k, column)) : 0.0f);
      }
    }
  }
}

// (tap, rank) in the order [panel][tap][rank].
inline std::vector<std::pair<int64_t, int64_t>> by_panels(int64_t taps, int64_t ranks) {
  std::vector<std::pair<int64_t, int64_t>> order;
  for (int64_t first = 0; first < ranks; first += kPanel) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t r = first; r < std::min(first + kPanel, ranks); ++r) order.emplace_back(tap, r);
    }
  }
  return order;
}

// -- a chain: its dense weight, the rank maps that it can keep, its packed factors
struct Chain {
  Dense weight;
  std::vector<Dense> maps;
  Floats packed;
  std::vector<int64_t> inputs, outputs, counts;  // orders of the channels, outputs of each colour
};

inline Chain separable_chain(const Conv& p, Draw& draw) {
  const Array down = factor(draw, p.c * p.kh, {p.r1, p.c, p.kh}), across = factor(draw, p.r1 * p.kw, {p.o, p.r1, p.kw});
  Geometry lines = p.g;
  lines.stride_w = lines.dilation_w = 1, lines.left = lines.right = 0;
  Chain chain{{p.o, p.c, p.kh, p.kw, p.g, p.c * p.kh + p.r1 * p.kw}, {}, {}, {}, {}, {}};
  chain.maps = {{p.r1, p.c, p.kh, 1, lines, p.c * p.kh}};
  for (int64_t c = 0; c < p.c; ++c) {
    for (int64_t i = 0; i < p.kh; ++i) {
      for (int64_t r = 0; r < p.r1; ++r) {
        chain.maps[0].add(r, c, i, 0, down(r, c, i));
        for (int64_t o = 0; o < p.o; ++o) {
          for (int64_t j = 0; j < p.kw; ++j) chain.weight.add(o, c, i, j, down(r, c, i) * across(o, r, j));
        }
      }
    }
  }
  strips(chain.packed, p.kh * p.c, p.r1, [&](int64_t k, int64_t r) { return down(r, k % p.c, k / p.c); });
  const auto order = by_panels(p.kw, p.r1);
  strips(chain.packed, p.kw * p.r1, p.o,
         [&](int64_t k, int64_t o) { return across(o, order[size_t(k)].second, order[size_t(k)].first); });
  return chain;
}

constexpr Geometry kPoints{1, 1, 0, 0, 0, 0, 1, 1};

inline Chain cp_chain(const Conv& p, Draw& draw) {
  const Array inner = factor(draw, p.c, {p.r1, p.c}), outer = factor(draw, p.r1, {p.o, p.r1});
  const Array down = factor(draw, p.kh, {p.r1, p.kh}), across = factor(draw, p.kw, {p.r1, p.kw});
  const int64_t lines = p.c + p.kh + p.kw;
  Chain chain{{p.o, p.c, p.kh, p.kw, p.g, lines + p.r1}, {}, {}, {}, {}, {}};
  chain.maps = {{p.r1, p.c, 1, 1, kPoints, p.c}, {p.r1, p.c, p.kh, p.kw, p.g, lines}};
  for (int64_t c = 0; c < p.c; ++c) {
    for (int64_t r = 0; r < p.r1; ++r) {
      chain.maps[0].add(r, c, 0, 0, inner(r, c));
      for (int64_t i = 0; i < p.kh; ++i) {
        for (int64_t j = 0; j < p.kw; ++j) {
          const double line = inner(r, c) * down(r, i) * across(r, j);
          chain.maps[1].add(r, c, i, j, line);
          for (int64_t o = 0; o < p.o; ++o) chain.weight.add(o, c, i, j, line * outer(o, r));
        }
      }
    }
  }
  strips(chain.packed, p.c, p.r1, [&](int64_t c, int64_t r) { return inner(r, c); });
  const int64_t whole = (p.r1 + 15) / 16 * 16;
  const auto line = [&](const Array& taps) { return [&](int64_t k, int64_t r) { return r < p.r1 ? taps(r, k) : 0; }; };
  strips(chain.packed, p.kh, whole, line(down), whole);
  strips(chain.packed, p.kw, whole, line(across), whole);
  strips(chain.packed, p.r1, p.o, [&](int64_t r, int64_t o) { return outer(o, r); });
  return chain;
}

// Clusters of channels, or one of each: plain Tucker-2, which keeps its maps.
inline Chain tucker_chain(const Conv& p, Draw& draw, int64_t gi, int64_t go) {
  const int64_t c = p.c / gi, o = p.o / go;
  const Array inner = factor(draw, c, {gi, go, p.r1, c}), outer = factor(draw, gi * p.r2, {go, o, gi, p.r2});
  const Array core = factor(draw, p.r1 * p.kh * p.kw, {gi, go, p.r2, p.r1, p.kh, p.kw});
  const int64_t second = c + p.r1 * p.kh * p.kw;
  Chain chain{{p.o, p.c, p.kh, p.kw, p.g, second + gi * p.r2}, {}, {}, {}, {}, {}};
  const bool plain = gi * go == 1;
  if (plain) chain.maps = {{p.r1, p.c, 1, 1, kPoints, p.c}, {p.r2, p.c, p.kh, p.kw, p.g, second}};
  if (!plain) chain.inputs = draw.permutation(p.c), chain.outputs = draw.permutation(p.o);
  for (int64_t a = 0; a < gi; ++a) {
    for (int64_t b = 0; b < go; ++b) {
      for (int64_t k = 0; k < c; ++k) {
        const int64_t from = plain ? k : chain.inputs[size_t(a * c + k)];
        for (int64_t r = 0; plain && r < p.r1; ++r) chain.maps[0].add(r, k, 0, 0, inner(0, 0, r, k));
        for (int64_t s = 0; s < p.r2; ++s) {
          for (int64_t ij = 0; ij < p.kh * p.kw; ++ij) {
            const int64_t i = ij / p.kw, j = ij % p.kw;
            double w = 0, magnitude = 0;
            for (int64_t r = 0; r < p.r1; ++r) {
              const double term = inner(a, b, r, k) * core(a, b, s, r, i, j);
              w += term, magnitude += std::fabs(term);
              if (plain) chain.maps[1].add(s, k, i, j, term);
            }
            for (int64_t l = 0; l < o; ++l) {
              const int64_t to = plain ? l : chain.outputs[size_t(b * o + l)];
              const size_t at = size_t(((to * p.c + from) * p.kh + i) * p.kw + j);
              chain.weight.w[at] += w * outer(b, l, a, s);
              chain.weight.magnitude[at] += magnitude * std::fabs(outer(b, l, a, s));
            }
          }
        }
      }
    }
  }
  for (int64_t pair = 0; pair < gi * go; ++pair) {
    strips(chain.packed, c, p.r1, [&](int64_t k, int64_t r) { return inner(pair / go, pair % go, r, k); });
  }
  const auto order = by_panels(p.kw, p.r1);
  for (int64_t pair = 0; pair < gi * go; ++pair) {
    strips(chain.packed, p.kh * p.kw * p.r1, p.r2, [&](int64_t k, int64_t s) {
      const auto [tap, r] = order[size_t(k % (p.kw * p.r1))];
      return core(pair / go, pair % go, s, r, k / (p.kw * p.r1), tap);
    });
  }
  for (int64_t b = 0; b < go; ++b) {
    strips(chain.packed, gi * p.r2, o, [&](int64_t k, int64_t l) { return outer(b, l, k / p.r2, k % p.r2); });
  }
  return chain;
}

// A convolution of one line of pixels, by 1 x 1.
inline Chain linear_chain(const Conv& p, Draw& draw) {
  const Array down = factor(draw, p.c, {p.r1, p.c}), up = factor(draw, p.r1, {p.o, p.r1});
  Chain chain{{p.o, p.c, 1, 1, kPoints, p.c + p.r1}, {{p.r1, p.c, 1, 1, kPoints, p.c}}, {}, {}, {}, {}};
  for (int64_t c = 0; c < p.c; ++c) {
    for (int64_t r = 0; r < p.r1; ++r) {
      chain.maps[0].add(r, c, 0, 0, down(r, c));
      for (int64_t o = 0; o < p.o; ++o) chain.weight.add(o, c, 0, 0, down(r, c) * up(o, r));
    }
  }
  strips(chain.packed, p.c, p.r1, [&](int64_t c, int64_t r) { return down(r, c); });
  strips(chain.packed, p.r1, p.o, [&](int64_t r, int64_t o) { return up(o, r); });
  return chain;
}

// Outputs dealt to the colours unevenly: one without any, and two that follow one another with at most eight each.
inline Chain monochromatic_chain(const Conv& p, Draw& draw) {
  const Array colours = factor(draw, p.c, {p.r1, p.c}), filters = factor(draw, p.kh * p.kw, {p.o, p.kh, p.kw});
  Chain chain{{p.o, p.c, p.kh, p.kw, p.g, p.c + p.kh * p.kw}, {}, {}, {}, {}, {}};
  for (int64_t left = p.o, k = 0; k < p.r1; ++k) {
    constexpr std::array<int64_t, 6> kDealt = {5, 8, 0, 21, 3, 13};
    const int64_t count = k + 1 == p.r1 ? left : std::min(left, kDealt[size_t(k) % kDealt.size()]);
    chain.counts.push_back(count), left -= count;
  }
  if (p.gi > 1) chain.outputs = draw.permutation(p.o);
  for (const double v : colours.data) chain.packed.push_back(float(v));
  bool second_of_pair = false;
  for (int64_t k = 0, first = 0; k < p.r1; first += chain.counts[size_t(k)], ++k) {
    const int64_t count = chain.counts[size_t(k)], rest = count % 16;
    for (int64_t l = first; l < first + count; ++l) {
      const int64_t to = chain.outputs.empty() ? l : chain.outputs[size_t(l)];
      for (int64_t c = 0; c < p.c; ++c) {
        for (int64_t i = 0; i < p.kh; ++i) {
          for (int64_t j = 0; j < p.kw; ++j) chain.weight.add(to, c, i, j, colours(k, c) * filters(l, i, j));
        }
      }
    }
    const auto at = [&](int64_t from) {
      return [&filters, &p, from](int64_t tap, int64_t l) { return filters(from + l, tap / p.kw, tap % p.kw); };
    };
    const auto small = [&](int64_t of) {
      return of < p.r1 && 0 < chain.counts[size_t(of)] && chain.counts[size_t(of)] <= 8;
    };
    if (second_of_pair) {
      second_of_pair = false;
    } else if (small(k) && small(k + 1)) {
      second_of_pair = true;
      const int64_t next = chain.counts[size_t(k + 1)];
      const auto in_turn = [&](int64_t tap, int64_t l) {
        return l / 2 < (l % 2 ? next : count) ? at(l % 2 ? first + count : first)(tap, l / 2) : 0.0;
      };
      strips(chain.packed, p.kh * p.kw, 16, in_turn);
    } else {
      const int64_t whole = rest > 8 ? count : count - rest;
      strips(chain.packed, p.kh * p.kw, whole, at(first));
      strips(chain.packed, p.kh * p.kw, count - whole, at(first + whole), 8);
    }
  }
  return chain;
}

}  // namespace rdk
