// Runs the controls: one bug of one kernel under every order of threads and every landing of cp.async, or the layouts.
//
//     controls <kernel> <bug> <M> <N> <K>     kernel: sgemm, half, half_trans, bf16, bf16_trans, tf32
//     controls layouts                        mma and ldmatrix on one warp, against the PTX ISA's formulas
//     controls time <kernel> <M> <N> <K>      milliseconds of a launch
//
// Prints a line per run, "<order> <cp_early> ok | wrong <how> | <diagnosis>", and the trace where there is one.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "controls.cu"
#include "simt/device_memory.h"

namespace {

using namespace rdk::gpu;

template <class T>
struct Buffer : simt::DeviceMemory {
  size_t size;
  Buffer(size_t n, const char* name) : DeviceMemory(n * sizeof(T), name), size(n) {}
  T* get() const { return DeviceMemory::get<T>(); }
  T& operator[](size_t i) { return get()[i]; }
};

float value(float x) { return x; }
float value(Half x) { return __half2float(x); }
float value(BFloat16 x) { return __bfloat162float(x); }

// Rounded to tf32 for the tensor cores.
template <class T>
void fill(Buffer<T>& data, uint32_t seed, bool tf32) {
  std::mt19937 random(seed);
  for (size_t i = 0; i < data.size; ++i) {
    const float x = float(int(random() % 4001) - 2000) / 1000;
    data[i] = T(tf32 ? __uint_as_float(to_tf32(x)) : x);
  }
}

struct Problem {
  std::string kernel;
  Sizes size;
  int bug;
};

// Returns "" or what is wrong.
template <class T, bool kTrans, bool kScalar>
std::string run(const Problem& p) {
  const auto [m, n, k] = p.size;
  simt::trace::reset();
  Buffer<T> a(size_t(m) * k, "A"), b(size_t(k) * n, "B");
  Buffer<float> c(size_t(m) * n, "C"), sums(size_t(m), "row sums");
  fill(a, 1, !kScalar), fill(b, 2, !kScalar);
  for (int i = 0; i < m; ++i) sums[i] = 0;
  if constexpr (kScalar) {
    run_sgemm(a.get(), b.get(), c.get(), sums.get(), p.size, p.bug, nullptr);
  } else {
    run_tgemm<T, kTrans>(a.get(), b.get(), c.get(), p.size, p.bug, nullptr);
  }
  int wrong = 0, wrong_sums = 0;
  for (int i = 0; i < m; ++i) {
    double sum = 0, sum_size = 0;
    for (int j = 0; j < n; ++j) {
      double exact = 0, size = 0;
      for (int l = 0; l < k; ++l) {
        const double term = double(value(a[i * k + l])) * value(kTrans || kScalar ? b[l * n + j] : b[j * k + l]);
        exact += term, size += std::fabs(term);
      }
      wrong += !(std::fabs(c[i * n + j] - exact) <= 1e-6 * size);  // a NaN too
      sum += exact, sum_size += size;
    }
    if (kScalar) wrong_sums += !(std::fabs(sums[i] - sum) <= 1e-6 * sum_size);
  }
  if (!wrong && !wrong_sums) return "";
  return std::to_string(wrong) + " elements, " + std::to_string(wrong_sums) + " row sums";
}

std::string run(const Problem& p) {
  if (p.kernel == "sgemm") return run<float, true, true>(p);
  if (p.kernel == "half") return run<Half, false, false>(p);
  if (p.kernel == "half_trans") return run<Half, true, false>(p);
  if (p.kernel == "bf16") return run<BFloat16, false, false>(p);
  if (p.kernel == "bf16_trans") return run<BFloat16, true, false>(p);
  if (p.kernel == "tf32") return run<float, false, false>(p);
  throw std::invalid_argument("no kernel " + p.kernel);
}

int control(const Problem& p) {
  for (int order = 0; order < 3; ++order) {
    for (int early = 0; early < 3; ++early) {
      simt::cfg.order = simt::cfg.block_order = order;
      simt::cfg.cp_early = early;
      std::string verdict;
      try {
        const std::string wrong = run(p);
        verdict = wrong.empty() ? "ok" : "wrong " + wrong;
      } catch (const std::runtime_error& e) {
        verdict = e.what();
      }
      std::printf("%d %d %s\n", order, early, verdict.c_str());
      std::fflush(stdout);
      if (simt::trace::kOn) simt::trace::print(stdout);
    }
  }
  return 0;
}

int time(const Problem& p) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < 3; ++i) {
    const auto before = Clock::now();
    if (p.kernel == "sgemm") {
      Buffer<float> a(size_t(p.size.m) * p.size.k, "A"), b(size_t(p.size.n) * p.size.k, "B");
      Buffer<float> c(size_t(p.size.m) * p.size.n, "C"), sums(size_t(p.size.m), "row sums");
      run_sgemm(a.get(), b.get(), c.get(), sums.get(), p.size, 0, nullptr);
    } else {
      Buffer<Half> a(size_t(p.size.m) * p.size.k, "A"), b(size_t(p.size.n) * p.size.k, "B");
      Buffer<float> c(size_t(p.size.m) * p.size.n, "C");
      run_tgemm<Half, false>(a.get(), b.get(), c.get(), p.size, 0, nullptr);
    }
    std::printf("%s %d x %d x %d: %.2f ms\n", p.kernel.c_str(), p.size.m, p.size.n, p.size.k,
                std::chrono::duration<double, std::milli>(Clock::now() - before).count());
  }
  return 0;
}

int failures = 0;
void expect(bool right, const std::string& what) {
  if (!right && ++failures) std::printf("wrong: %s\n", what.c_str());
}

// The element of A, B or D that the PTX ISA gives to `lane` as its i-th, written as the manual has it.
struct At {
  int row, column;
};
template <class T>
struct Fragment {
  static constexpr bool kWide = sizeof(T) == 4;
  static constexpr int kK = kWide ? 8 : 16, kA = kWide ? 4 : 8, kB = kWide ? 2 : 4;
  static At a(int lane, int i) {
    const int group = lane >> 2, member = lane % 4;
    if (kWide) return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? member : member + 4};
    return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8, member * 2 + (i & 1) + (i < 4 ? 0 : 8)};
  }
  static At b(int lane, int i) {
    const int group = lane >> 2, member = lane % 4;
    if (kWide) return {i == 0 ? member : member + 4, group};
    return {i < 2 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8, group};
  }
  static At d(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }
};

template <class T>
void check_mma(const char* type) {
  using F = Fragment<T>;
  std::mt19937 random(3);
  const auto draw = [&] { return float(int(random() % 17) - 8); };  // small integers: exact in every type
  float a[16][F::kK], b[F::kK][8], d[16][8];
  for (auto& row : a) {
    for (float& x : row) x = draw();
  }
  for (auto& row : b) {
    for (float& x : row) x = draw();
  }
  for (auto& row : d) {
    for (float& x : row) x = draw();
  }
  T ra[32][F::kA], rb[32][F::kB];
  float rd[32][4];
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < F::kA; ++i) ra[l][i] = T(a[F::a(l, i).row][F::a(l, i).column]);
    for (int i = 0; i < F::kB; ++i) rb[l][i] = T(b[F::b(l, i).row][F::b(l, i).column]);
    for (int i = 0; i < 4; ++i) rd[l][i] = d[F::d(l, i).row][F::d(l, i).column];
  }
  uint32_t words_a[128], words_b[64];
  std::memcpy(words_a, ra, sizeof words_a);
  std::memcpy(words_b, rb, sizeof words_b);
  run_mma_probe<T>(words_a, words_b, &rd[0][0], nullptr);
  int wrong = 0;
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = F::d(l, i);
      float exact = d[row][column];
      for (int k = 0; k < F::kK; ++k) exact += a[row][k] * b[k][column];
      wrong += rd[l][i] != exact;
    }
  }
  expect(!wrong, std::string("mma, ") + type + ": " + std::to_string(wrong) + " elements");
}

// Everything one but a[0][0], of which d = 8 a is the sum's only odd part.
float tf32_seen(uint32_t bits) {
  uint32_t a[128] = {}, b[64] = {};
  float d[128] = {};
  a[0] = bits;
  for (uint32_t& x : b) x = __float_as_uint(1.0f);
  run_mma_probe<float>(a, b, d, nullptr);
  return d[0];
}

void check_tf32() {
  const float lost = 1 + 0x1p-11f, kept = 1 + 0x1p-10f;
  expect(tf32_seen(__float_as_uint(lost)) == 1, "mma drops the bits that tf32 lacks");
  expect(tf32_seen(__float_as_uint(1 + 0x1.ffcp-11f)) == 1, "mma does not round to tf32");
  expect(tf32_seen(__float_as_uint(kept)) == kept, "mma keeps tf32's last bit");
  expect(__uint_as_float(to_tf32(lost)) == kept, "to_tf32: ties away from zero");
  expect(__uint_as_float(to_tf32(-lost)) == -kept, "to_tf32: ties away from zero, negative");
  expect(__uint_as_float(to_tf32(1 + 0x1p-12f)) == 1, "to_tf32: down");
  expect(std::isinf(__uint_as_float(to_tf32(INFINITY))) && std::isnan(__uint_as_float(to_tf32(NAN))), "to_tf32: inf");
}

template <bool kTrans>
void check_ldmatrix() {
  uint16_t rows[32][8];
  alignas(16) uint4 given[32];
  uint32_t got[32][4];
  for (int r = 0; r < 32; ++r) {
    for (int c = 0; c < 8; ++c) rows[r][c] = uint16_t(r * 8 + c);
  }
  std::memcpy(given, rows, sizeof given);
  run_ldmatrix_probe<kTrans>(given, &got[0][0], nullptr);
  int wrong = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {  // register i / 2, half i % 2
      const int across = lane % 4 * 2 + i % 2, along = lane / 4;
      const uint16_t exact = kTrans ? rows[i / 2 * 8 + across][along] : rows[i / 2 * 8 + along][across];
      wrong += uint16_t(got[lane][i / 2] >> 16 * (i % 2)) != exact;
    }
  }
  expect(!wrong, std::string("ldmatrix") + (kTrans ? ".trans: " : ": ") + std::to_string(wrong) + " elements");
}

// Examples from CUDA's manual, or by hand.
void check_intrinsics() {
  expect(__byte_perm(0x33221100u, 0x77665544u, 0x7531u) == 0x77553311u, "__byte_perm");
  expect(__byte_perm(0x80, 0x7f00, 0x8d08u) == 0xff0080ffu, "__byte_perm, signs");
  expect(__funnelshift_l(0x80000001u, 0x12345678u, 4) == 0x23456788u, "__funnelshift_l");
  expect(__funnelshift_r(0x80000001u, 0x12345678u, 4) == 0x88000000u, "__funnelshift_r");
  expect(__funnelshift_l(1, 2, 32) == 2 && __funnelshift_r(1, 2, 32) == 1, "__funnelshift by 32");
  expect(__umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu && __mulhi(-1, 1) == -1, "__umulhi, __mulhi");
  expect(__umul64hi(~0ull, ~0ull) == ~0ull - 1, "__umul64hi");
  expect(__clz(0) == 32 && __clz(1) == 31 && __popc(0xf0) == 4 && __ffs(0) == 0 && __ffs(8) == 4, "__clz, __ffs");
  expect(__brev(1) == 0x80000000u, "__brev");
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() == 1 && args[0] == "layouts") {
    check_mma<Half>("half"), check_mma<BFloat16>("bf16"), check_mma<float>("tf32");
    check_tf32();
    check_ldmatrix<false>(), check_ldmatrix<true>();
    check_intrinsics();
    return failures ? 1 : 0;
  }
  if (args.size() != 5) return std::puts("controls <kernel> <bug> <M> <N> <K>, time <kernel> <M> <N> <K>, layouts"), 2;
  const Sizes size{std::stoi(args[2]), std::stoi(args[3]), std::stoi(args[4])};
  return args[0] == "time" ? time({args[1], size, 0}) : control({args[0], size, std::stoi(args[1])});
}
