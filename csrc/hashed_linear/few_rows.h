// Few rows: granules are decoded in registers while they stream; V never touches memory.
#pragma once

#include "common/scratch.h"
#include "hashed_linear/problem.h"

namespace rdk {

constexpr int kAccumulators = kLanes == 16 ? 16 : 8;  // registers for sums; the rest hold V, x and signs
constexpr int kFewRows = 8;
constexpr int kFewGradRows = kAccumulators / (2 * kRegs);  // a sum there is a whole 16-lane vector
constexpr int64_t kFoldOutputs = 256;                      // added up in one chain of roundings
constexpr int64_t kOutputBlock = 128;                      // outputs per task; the tallest granule
constexpr int64_t kInputBytes = 16 << 10;                  // of x that stay in L1 for a block of outputs
constexpr int64_t kPrivateCacheBytes = 2 << 20, kSharedCacheBytes = 16 << 20;
constexpr int64_t kWarmReuse = 4;  // a bank that is read only a few times is not worth a pass of its own

// y[m, o] = sum_i x[m, i] V[o, i] for M <= kFewRows.
template <class T>
struct FewRows {
  Map map;
  View<T> x;
  const T* bank;
  Output<T> y;

  int64_t tasks() const { return ceil_div(y.cols, kOutputBlock); }

  void run(int64_t first, int64_t last) const {
    with_rows<kFewRows>(y.rows, [&]<int M>() { run_rows<M>(first, last); });
  }

 private:
  // x as [vector of 16 inputs][M][16] fp32, zero past the edge.
  template <int M>
  const float* pack() const {
    const int64_t vectors = ceil_div(x.width(), kVec);
    float* packed = Scratch::floats(0, std::max<int64_t>(vectors, 1) * M * kVec);
    for (int m = 0; m < M; ++m) {
      for (int64_t v = 0; v < vectors; ++v) store16(packed + (v * M + m) * kVec, row_vector(x, m, v * kVec));
    }
    return packed;
  }

  // Granules are met in random order, where no hardware prefetcher helps: read the bank in order first. What fits in
  // L2 is wanted there by every thread; of a larger bank each thread brings its share to the common cache.
  void warm(int64_t first, int64_t last) const {
    const int64_t values = int64_t(map.slots) << (map.go_shift + map.gi_shift);
    int64_t begin = 0, end = values * int64_t(sizeof(T));
    const int64_t outputs = end > kPrivateCacheBytes ? y.cols : (last - first) * kOutputBlock;
    if (end > kSharedCacheBytes || values * kWarmReuse > outputs * x.cols) return;
    if (end > kPrivateCacheBytes) begin = end * first / tasks(), end = end * last / tasks();
    for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(bank) + at, 0, 2);
  }

  template <int M>
  void run_rows(int64_t first, int64_t last) const {
    warm(first, last);
    const float* packed = pack<M>();
    const int64_t whole = x.width() / kVec, edge = x.width() % kVec;
    constexpr int64_t kVectors = kInputBytes / (M * kVec * sizeof(float));
    alignas(64) F sums[kOutputBlock * M];
    for (int64_t task = first; task < last; ++task) {
      const int64_t o0 = task * kOutputBlock, outputs = round_up(std::min(kOutputBlock, y.cols - o0), kVec);
      std::fill(sums, sums + outputs * M, F{});
      for (int64_t v = 0; v < whole; v += kVectors) {
        accumulate<M>(o0, outputs, v, std::min(v + kVectors, whole), packed, sums);
      }
      if (edge) accumulate_edge<M>(o0, outputs, whole, int(edge), packed + whole * M * kVec, sums);
      write<M>(o0, outputs, sums);
    }
  }

  // Vectors v0 .. v1-1 of the inputs into the sums of `outputs` rows of V.
  template <int M>
  void accumulate(int64_t o0, int64_t outputs, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    constexpr int NO = std::bit_floor(unsigned(kAccumulators / M));
    constexpr int NP = NO < 4 ? NO : 4;  // rows with a hash each keep their signs in registers too
    const int64_t band = int64_t(1) << map.go_shift;
    if (map.element()) {
      for (int64_t o = 0; o < outputs; ++o) element_row<M>(uint32_t(o0 + o), v0, v1, packed, sums + o * M);
    } else if (band < NO) {
      for (int64_t o = 0; o < outputs; o += NP) own_rows<M, NP>(uint32_t(o0 + o), v0, v1, packed, sums + o * M);
    } else {
      for (int64_t o = 0; o < outputs; o += band) {
        band_rows<M, NO>(uint32_t(o0 + o), std::min(band, outputs - o), v0, v1, packed, sums + o * M);
      }
    }
  }

  // acc[j][m] += V[j] . x[m]; the sums of NO rows stay in registers.
  template <int M, int NO>
  static RDK_INLINE void multiply_add(F (&acc)[NO][M], const V16* xs, const V16* w) {
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
      RDK_UNROLL for (int m = 0; m < M; ++m) {
        RDK_UNROLL for (int j = 0; j < NO; ++j) acc[j][m] += xs[m].r[i] * w[j].r[i];
      }
    }
  }

  template <int M, int NO, class Step>
  static RDK_INLINE void with_sums(F* sums, const Step& step) {
    F acc[NO][M] = {};  // from zero: the chain of roundings is a block's
    step(acc);
    RDK_UNROLL for (int j = 0; j < NO; ++j) { RDK_UNROLL for (int m = 0; m < M; ++m) sums[j * M + m] += acc[j][m]; }
  }

  // NO rows of V, a hash each.
  template <int M, int NO>
  void own_rows(uint32_t o, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    alignas(64) uint32_t vector[NO][kVec], row[kVec], aux[NO][kVec];
    with_sums<M, NO>(sums, [&](F(&acc)[NO][M]) RDK_LAMBDA {
      for (int64_t va = v0; va < v1; va += kVec) {
        for (int j = 0; j < NO; ++j) {
          const uint32_t r = ((o + j) & map.go_mask()) << map.row_shift();
          place_vectors(map, hash_prefix<uint32_t>((o + j) >> map.go_shift, map.seed), uint32_t(va), vector[j], row,
                        aux[j]);
          RDK_UNROLL for (int i = 0; i < kVec; i += kLanes)
              store(vector[j] + i, load(vector[j] + i) + (load(row + i) ^ r));
          prefetch(bank, vector[j]);
        }
        const int n = int(std::min<int64_t>(kVec, v1 - va));
        const float* xv = packed + va * M * kVec;
        for (int t = 0; t < n; ++t, xv += M * kVec) {
          V16 w[NO], xs[M];
          RDK_UNROLL for (int m = 0; m < M; ++m) xs[m] = load16(xv + m * kVec);
          RDK_UNROLL for (int j = 0; j < NO; ++j) {
            w[j] = flip(load16(bank + size_t(vector[j][t]) * kVec), sign_lanes16(aux[j][t]));
          }
          multiply_add<M, NO>(acc, xs, w);
        }
      }
    });
  }

  // The rows of one granule: one hash per vector serves them all, its signs stand on the factor touched less.
  template <int M, int NO>
  void band_rows(uint32_t o, int64_t rows, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    constexpr bool kFlipX = M < NO;
    constexpr int64_t kVectors = kInputBytes / (M * kVec * sizeof(float));
    alignas(64) uint32_t vector[kVectors + kVec], row[kVectors + kVec], aux[kVectors + kVec];
    const uint32_t prefix = hash_prefix<uint32_t>(o >> map.go_shift, map.seed);
    const int64_t n = v1 - v0;
    for (int64_t t = 0; t < n; t += kVec) place_vectors(map, prefix, uint32_t(v0 + t), vector + t, row + t, aux + t);
    const float* const x0 = packed + v0 * M * kVec;
    for (int64_t r0 = 0; r0 < rows; r0 += NO) {
      const uint32_t first = (o + uint32_t(r0)) & map.go_mask();
      uint32_t shifted[NO];
      RDK_UNROLL for (int j = 0; j < NO; ++j) shifted[j] = (first + j) << map.row_shift();
      with_sums<M, NO>(sums + r0 * M, [&](F(&acc)[NO][M]) RDK_LAMBDA {
        const float* xv = x0;
        for (int64_t t = 0; t < n; ++t, xv += M * kVec) {
          const U16 signs = sign_lanes16(aux[t]);
          V16 w[NO], xs[M];
          RDK_UNROLL for (int m = 0; m < M; ++m) {
            xs[m] = load16(xv + m * kVec);
            if constexpr (kFlipX) xs[m] = flip(xs[m], signs);
          }
          RDK_UNROLL for (int j = 0; j < NO; ++j) {
            w[j] = load16(bank + size_t(vector[t] + (shifted[j] ^ row[t])) * kVec);
            if constexpr (!kFlipX) w[j] = flip(w[j], signs);
          }
          multiply_add<M, NO>(acc, xs, w);
        }
      });
    }
  }

  template <int M>
  void element_row(uint32_t o, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    const uint32_t prefix = hash_prefix<uint32_t>(o, map.seed);
    U16 q = iota16(uint32_t(v0) * kVec);
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) q.r[i] = q.r[i] * kPrime3 + prefix;
    F acc[M] = {};
    for (int64_t v = v0; v < v1; ++v) {
      const V16 w = gather_element(bank, map, map16([&](int i) { return hash_finish<U>(q.r[i]); }));
      RDK_UNROLL for (int i = 0; i < kRegs; ++i) q.r[i] += kVec * kPrime3;
      RDK_UNROLL for (int m = 0; m < M; ++m) {
        const V16 xs = load16(packed + (v * M + m) * kVec);
        RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[m] += xs.r[i] * w.r[i];
      }
    }
    RDK_UNROLL for (int m = 0; m < M; ++m) sums[m] += acc[m];
  }

  // The last, ragged vector: V is cut too, for a bank entry past the edge may be NaN.
  template <int M>
  void accumulate_edge(int64_t o0, int64_t outputs, int64_t v, int lanes, const float* xv, F* sums) const {
    const uint32_t i0 = uint32_t(v * kVec);
    for (int64_t o = 0; o < outputs; o += kVec) {
      const U16 prefix = row_prefixes(map, uint32_t(o0 + o));
      Places at;
      if (!map.element()) place_rows(map, prefix, uint32_t(o0 + o), i0, &at);
      for (int j = 0; j < kVec; ++j) {
        const uint32_t row = uint32_t(o0 + o + j);
        const V16 w = keep_first(
            map.element() ? gather_element(bank, map, row_hashes(map, row, i0)) : decode_vector(bank, at, j), lanes);
        RDK_UNROLL for (int m = 0; m < M; ++m) {
          const V16 xs = load16(xv + m * kVec);
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) sums[(o + j) * M + m] += xs.r[i] * w.r[i];
        }
      }
    }
  }

  template <int M>
  void write(int64_t o0, int64_t outputs, const F* sums) const {
    for (int m = 0; m < M; ++m) {
      for (int64_t o = 0; o < outputs; o += kVec) {
        V16 row;
        RDK_UNROLL for (int i = 0; i < kRegs; ++i) {
          F r[kLanes];
          RDK_UNROLL for (int l = 0; l < kLanes; ++l) r[l] = sums[(o + i * kLanes + l) * M + m];
          transpose_square(r);
          RDK_UNROLL for (int width = kLanes / 2; width; width /= 2) {
            RDK_UNROLL for (int l = 0; l < width; ++l) r[l] += r[l + width];
          }
          row.r[i] = r[0];
        }
        write_vector(y, m, o0 + o, row);
      }
    }
  }
};

// dx[m, i] = sum_o dy[m, o] V[o, i] for M <= kFewGradRows: sixteen inputs at a time, V in registers.
template <class T>
struct FewRowsInputGrad {
  Map map;
  View<T> dy;
  const T* bank;
  Output<T> dx;

  int64_t tasks() const { return ceil_div(dx.cols, kVec); }

  void run(int64_t first, int64_t last) const {
    with_rows<kFewGradRows>(dx.rows, [&]<int M>() { run_rows<M>(first, last); });
  }

 private:
  template <int M>
  void run_rows(int64_t first, int64_t last) const {
    const int64_t stride = round_up(std::max<int64_t>(dy.cols, 1), kVec) + kVec;
    float* rows = Scratch::floats(0, M * stride);
    copy_block(dy, 0, M, 0, dy.cols, rows, stride);
    for (int64_t strip = first; strip < last; ++strip) run_strip<M>(strip * kVec, rows, stride);
  }

  template <int M>
  void run_strip(int64_t i0, const float* rows, int64_t stride) const {
    V16 acc[M] = {}, total[M] = {};
    Places at;
    for (int64_t o = 0; o < dy.cols; o += kVec) {
      if (o % kFoldOutputs == 0) {
        RDK_UNROLL for (int m = 0; m < M; ++m) total[m] = add(total[m], acc[m]), acc[m] = V16{};
      }
      const int n = int(std::min<int64_t>(kVec, dy.cols - o));
      if (!map.element()) place_rows(map, row_prefixes(map, uint32_t(o)), uint32_t(o), uint32_t(i0), &at);
      for (int j = 0; j < n; ++j) {
        const V16 w = map.element() ? gather_element(bank, map, row_hashes(map, uint32_t(o + j), uint32_t(i0)))
                                    : decode_vector(bank, at, j);
        RDK_UNROLL for (int m = 0; m < M; ++m) {
          const F g = splat(rows[m * stride + o + j]);
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[m].r[i] += g * w.r[i];
        }
      }
    }
    RDK_UNROLL for (int m = 0; m < M; ++m) write_vector(dx, m, i0, add(total[m], acc[m]));
  }
};

}  // namespace rdk
