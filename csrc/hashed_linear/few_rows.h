// Few rows: granules are decoded in registers while they stream; V never touches memory.
#pragma once

#include "common/scratch.h"
#include "hashed_linear/problem.h"

namespace rdk {

constexpr int kAccumulators = kLanes == 16 ? 16 : 8;  // registers for sums; the rest hold V, x and signs
constexpr int kFewRows = 8;
constexpr int kFewGradRows = kAccumulators / (2 * kRegs);  // a sum there is a whole 16-lane vector
constexpr int64_t kOutputBlock = 128;                       // outputs per task; the tallest granule
constexpr int64_t kInputBytes = 16 << 10;                   // of x that stay in L1 for a block of outputs

// y[m, o] = sum_i x[m, i] V[o, i] for M <= kFewRows.
template <class T>
struct FewRows {
  Map map;
  View<T> x;
  const T* bank;
  Output<T> y;

  int64_t tasks() const { return ceil_div(y.cols, kOutputBlock); }

  void run(int64_t first, int64_t last) const { dispatch<kFewRows>(first, last); }

 private:
  template <int M>
  void dispatch(int64_t first, int64_t last) const {
    if constexpr (M > 1) {
      if (y.rows < M) return dispatch<M - 1>(first, last);
    }
    run_rows<M>(first, last);
  }

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

  template <int M>
  void run_rows(int64_t first, int64_t last) const {
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
    constexpr int NO = kAccumulators / M < 1 ? 1 : std::bit_floor(unsigned(kAccumulators / M));
    for (int64_t o = 0; o < outputs; o += NO) {
      F* const acc = sums + o * M;
      if (map.element()) {
        for (int j = 0; j < NO; ++j) element_row<M>(uint32_t(o0 + o + j), v0, v1, packed, acc + j * M);
      } else if (map.slot_shift() == 0) {
        granule_rows<M, NO, false, true>(uint32_t(o0 + o), v0, v1, packed, acc);
      } else if (NO >> map.go_shift <= 1) {
        granule_rows<M, NO, true, false>(uint32_t(o0 + o), v0, v1, packed, acc);
      } else {
        granule_rows<M, NO, false, false>(uint32_t(o0 + o), v0, v1, packed, acc);
      }
    }
  }

  // NO rows of V at once; kShared: they lie in one granule; kChunk: the granule is one vector.
  template <int M, int NO, bool kShared, bool kChunk>
  void granule_rows(uint32_t o, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    constexpr int kHashes = kShared ? 1 : NO;
    constexpr bool kFlipX = kShared && M < NO;  // a sign may stand on either factor: on the one that is touched less
    const int row_shift = kChunk ? 0 : map.row_shift();
    F acc[NO][M];
    uint32_t prefix[kHashes];
    RDK_UNROLL for (int j = 0; j < NO; ++j) {
      RDK_UNROLL for (int m = 0; m < M; ++m) acc[j][m] = sums[j * M + m];
    }
    for (int j = 0; j < kHashes; ++j) prefix[j] = hash_prefix<uint32_t>((o + j) >> map.go_shift, map.seed);
    Places at[kHashes];
    for (int64_t q0 = v0 >> row_shift; q0 << row_shift < v1; q0 += kVec) {
      for (int j = 0; j < kHashes; ++j) place_slots(map, prefix[j], uint32_t(q0), &at[j]);
      const int64_t q1 = std::min<int64_t>(q0 + kVec, ((v1 - 1) >> row_shift) + 1);
      for (int64_t q = q0; q < q1; ++q) {
        const int t = int(q - q0);
        U16 shared_signs;
        if constexpr (kShared) shared_signs = sign_lanes16(at[0].aux[t]);
        const int64_t va = kChunk ? q : std::max(v0, q << row_shift);
        const int64_t vb = kChunk ? q + 1 : std::min(v1, (q + 1) << row_shift);
        for (int64_t v = va; v < vb; ++v) {
          const float* xv = packed + v * M * kVec;
          V16 flipped[kFlipX ? M : 1];
          if constexpr (kFlipX) {
            RDK_UNROLL for (int m = 0; m < M; ++m) flipped[m] = flip(load16(xv + m * kVec), shared_signs);
          }
          RDK_UNROLL for (int j = 0; j < NO; ++j) {
            const uint32_t aux = at[kShared ? 0 : j].aux[t];
            uint32_t vector = at[kShared ? 0 : j].vector[t];
            if constexpr (!kChunk) {
              vector += (((o + j) ^ aux >> 24) & map.go_mask()) << row_shift;
              vector += (uint32_t(v) ^ aux >> 8) & map.vector_mask();
            }
            V16 w = load16(bank + size_t(vector) * kVec);
            if constexpr (!kFlipX) w = flip(w, kShared ? shared_signs : sign_lanes16(aux));
            RDK_UNROLL for (int m = 0; m < M; ++m) {
              const V16 xs = kFlipX ? flipped[kFlipX ? m : 0] : load16(xv + m * kVec);
              RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[j][m] += xs.r[i] * w.r[i];
            }
          }
        }
      }
    }
    RDK_UNROLL for (int j = 0; j < NO; ++j) {
      RDK_UNROLL for (int m = 0; m < M; ++m) sums[j * M + m] = acc[j][m];
    }
  }

  template <int M>
  void element_row(uint32_t o, int64_t v0, int64_t v1, const float* packed, F* sums) const {
    const uint32_t prefix = hash_prefix<uint32_t>(o, map.seed);
    U16 q = iota16(uint32_t(v0) * kVec);
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) q.r[i] = q.r[i] * kPrime3 + prefix;
    F acc[M];
    RDK_UNROLL for (int m = 0; m < M; ++m) acc[m] = sums[m];
    for (int64_t v = v0; v < v1; ++v) {
      const V16 w = gather_element(bank, map, map16([&](int i) { return hash_finish<U>(q.r[i]); }));
      RDK_UNROLL for (int i = 0; i < kRegs; ++i) q.r[i] += kVec * kPrime3;
      RDK_UNROLL for (int m = 0; m < M; ++m) {
        const V16 xs = load16(packed + (v * M + m) * kVec);
        RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[m] += xs.r[i] * w.r[i];
      }
    }
    RDK_UNROLL for (int m = 0; m < M; ++m) sums[m] = acc[m];
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
        V16 w;
        if (map.element()) {
          const U16 column = iota16(i0);
          const uint32_t row = hash_prefix<uint32_t>(uint32_t(o0 + o + j), map.seed);
          w = gather_element(bank, map, map16([&](int i) { return hash_finish<U>(column.r[i] * kPrime3 + row); }));
        } else {
          w = decode_vector(bank, at, j);
        }
        w = keep_first(w, lanes);
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
        if (o0 + o < y.cols) write_vector(y, m, o0 + o, row);
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

  void run(int64_t first, int64_t last) const { dispatch<kFewGradRows>(first, last); }

 private:
  template <int M>
  void dispatch(int64_t first, int64_t last) const {
    if constexpr (M > 1) {
      if (dx.rows < M) return dispatch<M - 1>(first, last);
    }
    const int64_t stride = round_up(std::max<int64_t>(dy.cols, 1), kVec) + kVec;
    float* rows = Scratch::floats(0, M * stride);
    copy_block(dy, 0, M, 0, dy.cols, rows, stride);
    for (int64_t strip = first; strip < last; ++strip) run_strip<M>(strip * kVec, rows, stride);
  }

  template <int M>
  void run_strip(int64_t i0, const float* rows, int64_t stride) const {
    V16 acc[M] = {};
    Places at;
    for (int64_t o = 0; o < dy.cols; o += kVec) {
      const int n = int(std::min<int64_t>(kVec, dy.cols - o));
      if (!map.element()) place_rows(map, row_prefixes(map, uint32_t(o)), uint32_t(o), uint32_t(i0), &at);
      for (int j = 0; j < n; ++j) {
        V16 w;
        if (map.element()) {
          const U16 column = iota16(uint32_t(i0));
          const uint32_t row = hash_prefix<uint32_t>(uint32_t(o + j), map.seed);
          w = gather_element(bank, map, map16([&](int i) { return hash_finish<U>(column.r[i] * kPrime3 + row); }));
        } else {
          w = decode_vector(bank, at, j);
        }
        RDK_UNROLL for (int m = 0; m < M; ++m) {
          const F g = splat(rows[m * stride + o + j]);
          RDK_UNROLL for (int i = 0; i < kRegs; ++i) acc[m].r[i] += g * w.r[i];
        }
      }
    }
    RDK_UNROLL for (int m = 0; m < M; ++m) write_vector(dx, m, i0, acc[m]);
  }
};

}  // namespace rdk
