// Every kernel on ragged problems against plain double arithmetic and a map written again from its definition.
// One program serves the sanitizers (each buffer ends with its last element, so a read past it is seen) and emulators.
//
//     check [--break=load|value|shift]    with a fault put in, that a sanitizer or the comparison must find
//
// Prints per kernel the problems run and the worst error as a share of its bound; fails where one passes the bound.
#include <cmath>
#include <cstdio>
#include <map>
#include <thread>

#include "run.h"

namespace {

using namespace rdk;

std::string fault;

// -- the definition, on scalars
uint32_t rotate_left(uint32_t x, int n) { return x << n | x >> (32 - n); }

uint32_t xxh32(const uint32_t (&words)[2], uint32_t seed) {
  uint32_t h = seed + 374761393u + 8u;
  for (uint32_t word : words) h = rotate_left(h + word * 3266489917u, 17) * 668265263u;
  h = (h ^ h >> 15) * 2246822519u;
  h = (h ^ h >> 13) * 3266489917u;
  return h ^ h >> 16;
}

struct Problem {
  int64_t rows, out, in, slots, go, gi;
  uint32_t seed;
  bool ones;
  int layout;  // of x and dy: 0 as they come, 1 rows further apart, 2 transposed
};

struct Entry {
  size_t index;
  double sign;
};

Entry entry(const Problem& p, int64_t o, int64_t i) {
  const uint32_t h = xxh32({uint32_t(o / p.go), uint32_t(i / p.gi)}, p.seed);
  const uint64_t slot = uint64_t(h) * uint64_t(p.slots) >> 32;
  if (p.gi == 1) return {size_t(slot), h & 1 ? -1.0 : 1.0};
  const uint32_t aux = (h ^ h >> 15) * 2246822519u, c = uint32_t(i % p.gi), lane = c % 16;
  const uint64_t row = uint64_t(o % p.go) ^ (aux >> 24 & (p.go - 1));
  const uint64_t column = c ^ (aux >> 8 & (p.gi / 16 - 1)) * 16;
  return {size_t((slot * p.go + row) * p.gi + column), aux >> (lane / 2 + 16 * (lane % 2)) & 1 ? -1.0 : 1.0};
}

// -- what ran, and how far off
struct Tally {
  int problems = 0, wrong = 0;
  double worst = 0;
};
std::map<std::string, Tally> tallies;

template <class T>
constexpr double kEps = std::is_same_v<T, float>  ? 0x1p-23
                        : std::is_same_v<T, Half> ? 0x1p-10
                                                  : 0x1p-7;

struct Exact {
  double value = 0, magnitude = 0;
  int64_t terms = 0;
  void add(double x) { value += x, magnitude += std::fabs(x), ++terms; }
};

template <class T>
void compare(const std::string& kernel, const std::vector<T>& got, const std::vector<Exact>& exact) {
  Tally& tally = tallies[kernel];
  ++tally.problems;
  for (size_t k = 0; k < got.size(); ++k) {
    const Exact& e = exact[k];
    const double bound = double(e.terms + 8) * 0x1p-24 * e.magnitude + kEps<T> * std::fabs(e.value) + 0x1p-24;
    const double share = std::fabs(double(to_float(got[k])) - e.value) / bound;
    if (!(share <= 1)) ++tally.wrong;  // a NaN too
    if (!(share <= tally.worst)) tally.worst = share;
  }
}

// -- one problem on every kernel that can do it
template <class T>
class Run {
 public:
  explicit Run(const Problem& p) : p_(p), random_(uint32_t(p.rows * 31 + p.out * 7 + p.in)) {
    const int64_t width = p.in + p.ones, numel = p.slots * p.go * p.gi;
    std::vector<bool> used(numel);
    for (int64_t o = 0; o < p.out; ++o) {
      for (int64_t i = 0; i < width; ++i) {
        const Entry e = entry(p, o, i);
        used[e.index] = true;
        index_.push_back(e);
      }
    }
    bank_.resize(numel);
    for (int64_t k = 0; k < numel; ++k) bank_[k] = used[k] ? draw() : rounded(NAN);
    x_ = matrix(p.rows, p.in);
    dy_ = matrix(p.rows, p.out);
    for (int64_t o = 0; o < p.out; ++o) bias_.push_back(draw());
  }

  void operator()() {
    const int64_t width = p_.in + p_.ones, numel = int64_t(bank_.size());
    const View<T> x = view(x_, p_.in, p_.ones), dy = view(dy_, p_.out, false);
    std::vector<Exact> y(p_.rows * p_.out), dx(p_.rows * p_.in), dbank(numel);
    for (int64_t o = 0; o < p_.out; ++o) {
      for (int64_t i = 0; i < width; ++i) {
        const Entry& e = index_[o * width + i];
        const double w = e.sign * to_float(bank_[e.index]);
        for (int64_t m = 0; m < p_.rows; ++m) {
          const double g = to_float(dy_[m * row_step(p_.out) + o * col_step()]);
          const double v = i < p_.in ? to_float(x_[m * row_step(p_.in) + i * col_step()]) : 1.0;
          y[m * p_.out + o].add(kScale * v * w);
          if (i < p_.in) dx[m * p_.in + i].add(kScale * g * w);
          dbank[e.index].add(kScale * g * v * e.sign);
        }
      }
    }
    for (int64_t m = 0; m < p_.rows; ++m) {
      for (int64_t o = 0; o < p_.out; ++o) y[m * p_.out + o].add(to_float(bias_[o]));
    }
    if (fault == "value") bank_[index_.back().index] = rounded(9.0f), dy_[0] = rounded(9.0f);
    const Map map(p_.seed, p_.slots, fault == "shift" ? 0 : p_.go, p_.gi);
    for (const char* kernel : {"few_rows", "many_rows", "few_rows_grad", "many_rows_grad"}) {
      const bool grad = std::string(kernel).ends_with("grad");
      if (kernel[0] == 'f' && p_.rows > (grad ? kFewGradRows : kFewRows)) continue;
      const int64_t cols = grad ? p_.in : p_.out;
      scheduled(kernel, grad ? dx : y, [&](T* out, const Schedule& schedule) {
        run_product(kernel, map, grad ? dy : x, bank_.data(),
                    Output<T>{out, p_.rows, cols, kScale, grad ? nullptr : bias_.data()}, schedule);
      });
    }
    scheduled("bank_grad", dbank,
              [&](T* out, const Schedule& schedule) { run_bank_grad(map, dy, x, kScale, out, numel, schedule); });
  }

 private:
  static constexpr float kScale = 0.75f;

  // All tasks at once, then one by one in another order: within the bound, and the same bits.
  template <class Fn>
  static void scheduled(const std::string& kernel, const std::vector<Exact>& exact, const Fn& fn) {
    std::vector<T> got(exact.size(), rounded(NAN)), again = got;
    fn(got.data(), Schedule{});
    fn(again.data(), Schedule{1, 5});
    compare(kernel, got, exact);
    if (!got.empty() && std::memcmp(got.data(), again.data(), got.size() * sizeof(T))) ++tallies[kernel].wrong;
  }

  static T rounded(float x) {
    T t;
    convert(x, &t);
    return t;
  }
  T draw() { return rounded(std::normal_distribution<float>()(random_)); }

  int64_t row_step(int64_t cols) const { return p_.layout == 0 ? cols : p_.layout == 1 ? cols + 5 : 1; }
  int64_t col_step() const { return p_.layout == 2 ? p_.rows : 1; }

  // NaN between the rows, and nothing after the last element.
  std::vector<T> matrix(int64_t rows, int64_t cols) {
    std::vector<T> data(size_t((rows - 1) * row_step(cols) + (cols - 1) * col_step() + 1), rounded(NAN));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) data[r * row_step(cols) + c * col_step()] = draw();
    }
    return data;
  }

  View<T> view(const std::vector<T>& data, int64_t cols, bool ones) const {
    const int64_t seen = fault == "load" ? round_up(cols, kVec) : cols;  // the tail of a row as a whole vector
    return {data.data(), p_.rows, seen, row_step(cols), col_step(), ones};
  }

  Problem p_;
  std::mt19937 random_;
  std::vector<Entry> index_;
  std::vector<T> bank_, x_, dy_, bias_;
};

// Every branch of the kernels: blocks and their tails, each number of few rows, several panels and partitions.
std::vector<Problem> problems() {
  struct Shape {
    int64_t rows, out, in, slots;
  };
  const Shape shapes[] = {{1, 1, 1, 1},     {1, 37, 131, 3},   {2, 130, 75, 5}, {3, 16, 32, 1},  {4, 67, 61, 7},
                          {5, 33, 259, 2},  {6, 150, 47, 3},   {7, 45, 17, 11}, {8, 20, 530, 2}, {1, 5, 4200, 9},
                          {13, 150, 33, 3}, {17, 139, 275, 2}, {9, 392, 20, 1}, {515, 9, 20, 5}, {259, 17, 19, 1}};
  const int64_t granules[][2] = {{1, 1}, {1, 16}, {32, 32}, {2, 16}, {4, 64}, {128, 16}, {16, 128}};
  std::vector<Problem> all;
  for (const auto& [go, gi] : granules) {
    for (const Shape& s : shapes) {
      const int n = int(all.size());
      all.push_back({s.rows, s.out, s.in, s.slots, go, gi, 0x9e3779b9u * uint32_t(n), gi == 1 && n % 2 == 0, n % 3});
    }
  }
  all.push_back({14, 1040, 33, 7, 1, 1, 1u, true, 0});  // sixteen partitions
  if (!fault.empty()) all.resize(20);                   // found soon or never
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) fault = std::string(argv[i]).substr(std::string("--break=").size());
  for (const Problem& p : problems()) {
    std::thread([&] { Run<float>{p}(); }).join();  // a thread each: its work memory is no larger than it asks for
    std::thread([&] { Run<BFloat16>{p}(); }).join();
    std::thread([&] { Run<Half>{p}(); }).join();
  }
  int wrong = 0;
  for (const auto& [kernel, tally] : tallies) {
    std::printf("%d lanes  %-14s  %3d problems  %d wrong  worst error %.3f of its bound\n", kLanes, kernel.c_str(),
                tally.problems, tally.wrong, tally.worst);
    wrong += tally.wrong;
  }
  return wrong ? 1 : 0;
}
