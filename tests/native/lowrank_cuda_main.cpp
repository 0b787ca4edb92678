// The CUDA kernels of the low-rank chains on exactly-sized buffers against fp64, for the sanitizers and for mutants.
//
//     lowrank_cuda [dtype] [order] [cp_early] [even]     as cuda_main.cpp, and the same lines on stdout
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <span>
#include <string>
#include <string_view>

#include "cp_conv2d/depthwise.cuh"
#include "cuda_host.h"
#include "tucker_conv2d/core.cuh"

namespace {

using namespace rdk::gpu;

enum class Op { lines, cp, tucker };

struct Problem {
  const char* name;
  Op op;
  int n, c, h, w, out, kh, kw, inner, ranks;  // inner: R1 of Tucker
  Geometry geometry;
  int oh, ow;
  bool channels_last, bias, residual;
  int activation;
  size_t shared;
};

// Ragged in every dimension, several tiles and blocks wide; T in segments where shared memory is short.
constexpr Problem kProblems[] = {
    {"linear", Op::lines, 1, 75, 97, 1, 133, 1, 1, 0, 70, {1, 1, 0, 0, 1, 1}, 97, 1, true, true, true, 1, 166912},
    {"lines", Op::lines, 2, 20, 9, 11, 37, 3, 5, 0, 21, {1, 2, 1, 2, 2, 1}, 7, 6, true, true, false, 0, 166912},
    {"lines-segments", Op::lines, 1, 16, 7, 9, 133, 3, 3, 0, 150, {1, 1, 1, 1, 1, 1}, 7, 9, true, true, true, 2, 46080},
    {"cp", Op::cp, 2, 21, 9, 10, 37, 3, 5, 0, 21, {2, 1, 1, 2, 1, 1}, 5, 10, false, true, true, 3, 166912},
    {"cp-many", Op::cp, 1, 24, 12, 19, 140, 3, 3, 0, 70, {1, 1, 1, 1, 1, 1}, 12, 19, true, false, true, 0, 166912},
    {"cp-small", Op::cp, 1, 8, 6, 7, 70, 2, 2, 0, 300, {1, 1, 0, 0, 1, 1}, 5, 6, true, true, false, 0, 54272},
    {"tucker", Op::tucker, 2, 21, 8, 10, 37, 3, 2, 21, 19, {1, 2, 1, 0, 2, 1}, 6, 5, false, true, true, 1, 166912},
    {"tucker-many",
     Op::tucker,
     1,
     24,
     9,
     17,
     140,
     3,
     3,
     70,
     75,
     {1, 1, 1, 1, 1, 1},
     9,
     17,
     true,
     false,
     true,
     0,
     166912},
};

// Whole tiles and blocks: how well accesses coalesce shows here.
constexpr Problem kEven[] = {
    {"linear", Op::lines, 1, 128, 128, 1, 128, 1, 1, 0, 64, {1, 1, 0, 0, 1, 1}, 128, 1, true, true, true, 0, 166912},
    {"lines", Op::lines, 1, 64, 16, 16, 128, 3, 3, 0, 64, {1, 1, 1, 1, 1, 1}, 16, 16, true, true, true, 0, 166912},
    {"cp", Op::cp, 1, 64, 16, 16, 128, 3, 3, 0, 64, {1, 1, 1, 1, 1, 1}, 16, 16, true, true, true, 0, 166912},
    {"tucker", Op::tucker, 1, 64, 16, 16, 128, 3, 3, 64, 64, {1, 1, 1, 1, 1, 1}, 16, 16, true, true, true, 0, 166912},
};

template <class T>
struct Array {
  int64_t size;
  Bytes bytes;
  T* data;
  Array(int64_t n, const char* name) : size(n), bytes(n * sizeof(T), name), data(bytes.get<T>()) {}
  Array(int64_t n, const char* name, uint32_t seed, double scale) : Array(n, name) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < n; ++i) data[i] = from_float<T>(float(scale * (int(random() % 2001) - 1000) / 500));
  }
  double operator[](int64_t at) const { return to_float(data[at]); }
};

template <class T>
Map4<T> map4(T* data, int64_t c, int64_t h, int64_t w, bool last) {
  return last ? Map4<T>{data, h * w * c, 1, w * c, c} : Map4<T>{data, c * h * w, h * w, w, 1};
}

int failures = 0;

template <class T>
void run(const Problem& p, bool tf32) {
  const int r = p.ranks, q = p.op == Op::tucker ? p.inner : r;
  Array<T> x(int64_t(p.n) * p.c * p.h * p.w, "x", 1, 1), bias(p.out, "bias", 2, 1);
  Array<T> y(int64_t(p.n) * p.out * p.oh * p.ow, "y"), residual(y.size, "residual", 3, 1);
  const double fan = 1 / std::sqrt(double(p.c)), up = 1 / std::sqrt(double(r));
  const auto scale = [](int terms) { return 1 / std::sqrt(double(terms)); };
  Array<T> first(p.op == Op::lines ? int64_t(r) * p.c * p.kh : int64_t(q) * p.c, "first", 4, fan);
  Array<T> second(p.op == Op::tucker ? int64_t(r) * q * p.kh * p.kw : int64_t(r) * p.kh, "second", 5,
                  p.op == Op::tucker ? scale(q * p.kh * p.kw) : scale(p.kh));
  Array<T> third(int64_t(r) * p.kw, "third", 6, scale(p.kw));
  Array<T> last(p.op == Op::lines ? int64_t(p.out) * r * p.kw : int64_t(p.out) * r, "last", 7, up);

  HostMemory memory;
  const Device device{p.shared, nullptr};
  const auto filled = [&](auto problem) {
    problem.x = {map4<const T>(x.data, p.c, p.h, p.w, p.channels_last), p.n, p.c, p.h, p.w};
    problem.y = {map4<T>(y.data, p.out, p.oh, p.ow, p.channels_last), p.n, p.out, p.oh, p.ow};
    if (p.residual) problem.residual = map4<const T>(residual.data, p.out, p.oh, p.ow, p.channels_last);
    problem.bias = p.bias ? bias.data : nullptr;
    problem.activation = Activation(p.activation), problem.geometry = p.geometry;
    problem.kh = p.kh, problem.kw = p.kw;
    return problem;
  };
  if (p.op == Op::lines) {
    auto problem = filled(LinesProblem<T>{});
    problem.vertical = first.data, problem.horizontal = last.data, problem.ranks = r;
    lines(problem, tf32, memory, device);
  } else if (p.op == Op::cp) {
    auto problem = filled(DepthwiseProblem<T>{});
    problem.inner = first.data, problem.vertical = second.data, problem.horizontal = third.data;
    problem.outer = last.data, problem.ranks = r;
    cp(problem, tf32, memory, device);
  } else {
    auto problem = filled(CoreProblem<T>{});
    problem.inner = first.data, problem.core = second.data, problem.outer = last.data;
    problem.inner_ranks = q, problem.outer_ranks = r;
    tucker(problem, tf32, memory, device);
  }

  // W[o, i, j, c], and |W| to know how large the terms are.
  const int64_t taps = p.kh * p.kw;
  std::vector<double> wide(p.out * taps * p.c), size(wide.size());
  std::vector<double> through(p.op == Op::tucker ? r * taps * p.c : 0);
  for (int64_t k = 0; k < r && p.op == Op::tucker; ++k) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t s = 0; s < q; ++s) {
        const double core = second[(k * q + s) * taps + t];
        for (int64_t c = 0; c < p.c; ++c) through[(k * taps + t) * p.c + c] += core * first[s * p.c + c];
      }
    }
  }
  for (int64_t o = 0; o < p.out; ++o) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t k = 0; k < r; ++k) {
        const int64_t i = t / p.kw, j = t % p.kw;
        for (int64_t c = 0; c < p.c; ++c) {
          const double term = p.op == Op::lines ? last[(o * r + k) * p.kw + j] * first[(k * p.c + c) * p.kh + i]
                              : p.op == Op::cp
                                  ? last[o * r + k] * first[k * p.c + c] * second[k * p.kh + i] * third[k * p.kw + j]
                                  : last[o * r + k] * through[(k * taps + t) * p.c + c];
          wide[(o * taps + t) * p.c + c] += term, size[(o * taps + t) * p.c + c] += term * term;
        }
      }
    }
  }
  const double unit = sizeof(T) == 4 ? (tf32 ? 0x1p-9 : 0x1p-18) : std::is_same_v<T, Half> ? 0x1p-9 : 0x1p-6;
  int wrong = 0;
  const Map4<const T> in = map4<const T>(x.data, p.c, p.h, p.w, p.channels_last);
  const Map4<T> to = map4<T>(y.data, p.out, p.oh, p.ow, p.channels_last);
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t o = 0; o < p.out; ++o) {
      for (int64_t a = 0; a < p.oh; ++a) {
        for (int64_t b = 0; b < p.ow; ++b) {
          double sum = 0, terms = 0;
          for (int64_t t = 0; t < taps; ++t) {
            const int64_t v = a * p.geometry.stride_h - p.geometry.top + t / p.kw * p.geometry.dilation_h;
            const int64_t u = b * p.geometry.stride_w - p.geometry.left + t % p.kw * p.geometry.dilation_w;
            if (v < 0 || v >= p.h || u < 0 || u >= p.w) continue;
            for (int64_t c = 0; c < p.c; ++c) {
              const double value = to_float(in.data[n * in.image + v * in.row + u * in.pixel + c * in.channel]);
              sum += value * wide[(o * taps + t) * p.c + c];
              terms += value * value * size[(o * taps + t) * p.c + c];
            }
          }
          const int64_t at = n * to.image + o * to.channel + a * to.row + b * to.pixel;
          sum += (p.bias ? bias[o] : 0) + (p.residual ? residual[at] : 0);
          if (p.activation == 1) sum = std::max(sum, 0.0);
          if (p.activation == 2) sum = 0.5 * sum * (1 + std::erf(sum / std::sqrt(2.0)));
          if (p.activation == 3) sum = sum / (1 + std::exp(-sum));
          wrong += !(std::abs(y[at] - sum) <= unit * (std::abs(sum) + 2 * std::sqrt(terms) + 0.1));
        }
      }
    }
  }
  failures += wrong > 0;
  std::printf(wrong ? "%s fwd wrong %d of %d\n" : "%s fwd ok\n", p.name, wrong, int(y.size));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view dtype = argc > 1 ? argv[1] : "bf16";
  simt::cfg.order = simt::cfg.block_order = argc > 2 ? std::atoi(argv[2]) : 0;
  simt::cfg.cp_early = argc > 3 ? std::atoi(argv[3]) : 0;
  const bool even = argc > 4;
  int races = 0;
  for (const Problem& p : even ? std::span<const Problem>(kEven) : std::span<const Problem>(kProblems)) {
    simt::trace::reset();
    try {
      if (dtype == "bf16") run<BFloat16>(p, false);
#ifndef RDK_ONLY_BF16
      if (dtype == "half") run<Half>(p, false);
      if (dtype == "fp32") run<float>(p, false);
      if (dtype == "tf32") run<float>(p, true);
#endif
    } catch (const std::exception& error) {
      ++failures;
      std::printf("%s %s\n", p.name, error.what());
    }
    const simt::trace::Report report = simt::trace::report();
    races += int(report.races.size());
    for (const std::string& race : report.races) std::printf("race: %s\n", race.c_str());
    for (const simt::trace::Row& row : even ? report.rows : std::vector<simt::trace::Row>()) {
      std::printf("line %s %s %d %s %s %d %.4f\n", p.name, row.file.c_str(), row.line, row.op.c_str(),
                  row.space.c_str(), row.bytes, row.ratio);
    }
  }
  return failures > 0 || races > 0;
}
