// The CUDA kernels on exactly-sized buffers against fp64, for the sanitizers and for mutants of the kernels.
//
//     cuda [dtype] [order] [cp_early] [even]     dtype: bf16, half, fp32, tf32; order of threads and blocks: 0, 1, 2
//
// Prints "<problem> <pass> ok", "... wrong <how>" or the emulation's diagnosis; where accesses are traced, also "race
// ..." and, for the problems that fill their blocks (`even`), "line <problem> <file> <line> <op> <space> <bytes>
// <ratio>".
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <span>
#include <string>
#include <string_view>

#include "cuda_host.h"

namespace {

using namespace rdk::gpu;
using rdk::Map;

struct Problem {
  const char* name;
  int rows, out, in, slots, go, gi;
  bool bias, hashed_bias;
};

// Ragged in every dimension, each kernel and path at least once, several blocks wide.
constexpr Problem kProblems[] = {
    {"element-few", 5, 70, 75, 97, 1, 1, true, false},  {"element-many", 37, 81, 139, 200, 1, 1, false, true},
    {"chunk-few", 7, 45, 300, 11, 1, 16, true, false},  {"chunk-many", 70, 139, 205, 41, 1, 16, true, false},
    {"tile-few", 3, 70, 161, 2, 32, 32, false, false},  {"tile-many", 67, 101, 150, 3, 32, 32, true, false},
    {"tile-deep", 30, 40, 420, 2, 32, 32, true, false}, {"any-few", 2, 31, 300, 3, 4, 64, false, false},
    {"any-many", 66, 150, 90, 2, 128, 16, true, false}, {"any-owned", 40, 150, 140, 2, 64, 64, false, false},
};

// Whole blocks: how well accesses coalesce shows here.
constexpr Problem kEven[] = {
    {"element-few", 8, 128, 256, 4096, 1, 1, true, false}, {"element-many", 128, 128, 128, 4096, 1, 1, true, false},
    {"chunk-few", 8, 128, 256, 256, 1, 16, true, false},   {"chunk-many", 128, 128, 128, 256, 1, 16, true, false},
    {"tile-few", 8, 128, 256, 4, 32, 32, true, false},     {"tile-many", 128, 128, 128, 4, 32, 32, true, false},
};

// V[o, i], from the map's definition.
struct Place {
  int64_t index;
  double sign;
};
Place place(const Map& map, uint32_t o, uint32_t i) {
  const uint32_t h =
      rdk::hash_finish(rdk::hash_prefix(o >> map.go_shift, map.seed) + (i >> map.gi_shift) * rdk::kPrime3);
  const int64_t slot = int64_t(uint64_t(h) * map.slots >> 32);
  if (map.element()) return {slot, h & 1 ? -1.0 : 1.0};
  const uint32_t aux = rdk::aux_of(h), lane = i % 16;
  const uint32_t row = (o ^ aux >> 24) & map.go_mask(), col = (i & map.gi_mask()) ^ (aux >> 8 & map.vector_mask()) * 16;
  return {(((slot << map.go_shift) + row) << map.gi_shift) + col, aux >> (lane / 2 + lane % 2 * 16) & 1 ? -1.0 : 1.0};
}

template <class T>
struct Matrix {
  int rows, cols;
  Bytes bytes;
  T* data;
  Matrix(int r, int c, const char* name)
      : rows(r), cols(c), bytes(int64_t(r) * c * sizeof(T), name), data(bytes.get<T>()) {}
  void fill(uint32_t seed) {
    std::mt19937 random(seed);
    for (int n = 0; n < rows * cols; ++n) data[n] = from_float<T>(float(int(random() % 2001) - 1000) / 500);
  }
  double at(int r, int c) const { return to_float(data[r * cols + c]); }
  Strided<T> view() const { return {data, rows, cols, cols, 1}; }
};

int failures = 0;

// |got - exact| against what fp32 sums of terms of this size, and one rounding to T, may make of it.
template <class T>
void compare(const char* problem, const char* pass, const Matrix<T>& got, bool tf32, const std::vector<double>& exact,
             const std::vector<double>& size) {
  const double unit = sizeof(T) == 4            ? 0x1p-22
                      : std::is_same_v<T, Half> ? 0x1p-10
                                                : 0x1p-7,
               sums = tf32 ? 0x1p-9 : 0x1p-18;
  int wrong = 0, first = -1;
  for (int n = 0; n < got.rows * got.cols; ++n) {
    const double v = to_float(got.data[n]);
    if (!(std::abs(v - exact[n]) <= unit * std::abs(exact[n]) + sums * size[n] + 1e-6)) first = wrong++ ? first : n;
  }
  failures += wrong > 0;
  if (wrong) {
    std::printf("%s %s wrong %d of %d, first at %d: %g for %g\n", problem, pass, wrong, got.rows * got.cols, first,
                double(to_float(got.data[first])), exact[first]);
  } else {
    std::printf("%s %s ok\n", problem, pass);
  }
}

template <class T>
void run(const Problem& p, bool tf32) {
  const Map map(7, p.slots, p.go, p.gi);
  const int64_t size = int64_t(p.slots) * p.go * p.gi;
  const int width = p.in + p.hashed_bias;
  const float scale = 0.5f;
  Matrix<T> x(p.rows, p.in, "x"), dy(p.rows, p.out, "dy"), bank(1, int(size), "bank"), bias(1, p.out, "bias"),
      some(1, int(size), "");
  x.fill(1), dy.fill(2), bias.fill(3), some.fill(4);
  std::vector<Place> v(size_t(p.out) * width);
  for (int o = 0; o < p.out; ++o) {
    for (int i = 0; i < width; ++i) v[o * width + i] = place(map, o, i);
  }
  for (const Place& at : v) bank.data[at.index] = some.data[at.index];  // what V does not use stays NaN
  const auto weight = [&](int o, int i) { return v[o * width + i].sign * to_float(bank.data[v[o * width + i].index]); };

  const Device device{kA100Shared, nullptr};
  HostMemory memory;
  {
    Matrix<T> y(p.rows, p.out, "y");
    const Output<T> out{y.data, nullptr, p.bias ? bias.data : nullptr, p.rows, p.out, scale, p.hashed_bias};
    product<T, Forward>(x.view(), bank.data, size, map, out, tf32, memory, device);
    std::vector<double> exact(p.rows * p.out), terms(p.rows * p.out);
    for (int m = 0; m < p.rows; ++m) {
      for (int o = 0; o < p.out; ++o) {
        double sum = p.hashed_bias ? weight(o, p.in) : 0, absolute = std::abs(sum);
        for (int i = 0; i < p.in; ++i)
          sum += x.at(m, i) * weight(o, i), absolute += std::abs(x.at(m, i) * weight(o, i));
        exact[m * p.out + o] = scale * sum + (p.bias ? bias.at(0, o) : 0), terms[m * p.out + o] = absolute;
      }
    }
    compare(p.name, "fwd", y, tf32, exact, terms);
  }
  {
    Matrix<T> dx(p.rows, p.in, "dx");
    const Output<T> out{dx.data, nullptr, nullptr, p.rows, p.in, scale, false};
    product<T, InputGrad>(dy.view(), bank.data, size, map, out, tf32, memory, device);
    std::vector<double> exact(p.rows * p.in), terms(p.rows * p.in);
    for (int m = 0; m < p.rows; ++m) {
      for (int i = 0; i < p.in; ++i) {
        double sum = 0, absolute = 0;
        for (int o = 0; o < p.out; ++o)
          sum += dy.at(m, o) * weight(o, i), absolute += std::abs(dy.at(m, o) * weight(o, i));
        exact[m * p.in + i] = scale * sum, terms[m * p.in + i] = absolute;
      }
    }
    compare(p.name, "bwd_x", dx, tf32, exact, terms);
  }
  {
    Matrix<T> dbank(1, int(size), "dbank");
    bank_grad<T>(dy.view(), x.view(), p.hashed_bias, map, BankOutput<T>{dbank.data, size, scale}, tf32, memory, device);
    std::vector<double> exact(size), terms(size);
    for (int o = 0; o < p.out; ++o) {
      for (int i = 0; i < width; ++i) {
        const Place& at = v[o * width + i];
        for (int m = 0; m < p.rows; ++m) {
          const double term = dy.at(m, o) * (i < p.in ? x.at(m, i) : 1.0);
          exact[at.index] += scale * at.sign * term, terms[at.index] += std::abs(term);
        }
      }
    }
    compare(p.name, "bwd_bank", dbank, tf32, exact, terms);
  }
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
