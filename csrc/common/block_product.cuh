// Products of blocks in shared memory: swizzled tiles, their asynchronous loads, and what four warps make of them.
#pragma once

#include "common/device.cuh"

namespace rdk::gpu {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

// A matrix of at least one row and column; its rows start on 16 bytes.
template <class T>
struct Rows {
  const T* data;
  int rows, cols, stride;
};

// How a product is taken: on tensor cores in T, on tensor cores in tf32, or by fp32 multiply-adds.
enum class Math { tensor, tf32, fma };

RDK_DEVICE int lane_id() { return threadIdx.x % 32; }
RDK_DEVICE int warp_id() { return threadIdx.x / 32; }

RDK_DEVICE float4 floats(uint4 v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
RDK_DEVICE uint4 words(float4 v) {
  return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}

// kRows rows of kCols values in shared memory. Chunks of 16 bytes are permuted within a row, so that eight lanes that
// read one chunk column, or (kByWord) four rows of eight words, meet different banks.
template <class T, int kRows_, int kCols_, bool kByWord = false>
struct Tile {
  static constexpr int kRows = kRows_, kCols = kCols_, kSize = kRows * kCols;
  static constexpr int kValues = 16 / sizeof(T), kChunks = kCols / kValues;
  static_assert(kChunks >= 4 && (kChunks & (kChunks - 1)) == 0);

  RDK_DEVICE static int swizzle(int row) {
    if constexpr (kByWord) return 2 * (row & 3);
    return kChunks >= 8 ? row & 7 : row / (8 / kChunks) & (kChunks - 1);
  }
  RDK_DEVICE static int chunk(int row, int c) { return row * kCols + (c ^ swizzle(row)) * kValues; }
  RDK_DEVICE static int value(int row, int col) { return chunk(row, col / kValues) + col % kValues; }

  // Rows row0 .., columns col0 .. of `from` by asynchronous copies, which the caller commits. Columns past the last are
  // zero, but kWhole: there are none. Rows past the last are where they are summed over (kZeroRows), else they are some
  // row, for nothing that is made of them is kept.
  template <bool kZeroRows, bool kWhole = false>
  RDK_DEVICE static void load(T* to, const Rows<T>& from, int row0, int col0) {
    constexpr int kAtOnce = kThreads / kChunks;
    static_assert(kThreads % kChunks == 0 && kRows % kAtOnce == 0);
    const int c = threadIdx.x % kChunks, r = threadIdx.x / kChunks;
    int bytes = 16;
    if constexpr (!kWhole) bytes = min(max((from.cols - col0 - c * kValues) * int(sizeof(T)), 0), 16);
    const char* const source = reinterpret_cast<const char*>(from.data + (kWhole || bytes ? col0 + c * kValues : 0));
    const int stride = from.stride * int(sizeof(T));
#pragma unroll
    for (int i = 0; i < kRows; i += kAtOnce) {
      const int row = row0 + r + i, inside = min(row, from.rows - 1);
      cp_async16(to + chunk(r + i, c), source + int64_t(inside) * stride, kZeroRows && row != inside ? 0 : bytes);
    }
  }
};

// Sums of fp32 values are settled every kChain of depth: one long chain of roundings would lose to torch's blocks of
// them. The rounding of a 16-bit result hides it.
template <class T>
constexpr bool kSettles = sizeof(T) == 4;
constexpr int kChain = 256;

// For __launch_bounds__: fp32 multiply-adds are worth more registers than resident blocks, which ptxas would else trade
// for spills. 0 leaves it to ptxas.
template <Math kMath>
constexpr int kResident = kMath == Math::fma ? 1 : 0;

// One warp's kM x kN part of a block product, in fp32 registers: rows from `row`, columns from `col`, multiples of kM
// and kN. A is [rows][depth] (kTransA: [depth][rows]), B is [columns][depth] (kTransB: [depth][columns]).
//
// A lane's place in a tile is worked out once: another depth or 16 further rows are an xor (no bit of them meets the
// swizzle's rows) or whole rows away.
template <class T, Math kMath, int kM, int kN, class TileA, bool kTransA, class TileB, bool kTransB>
struct WarpProduct {
  static constexpr int kStep = 32 / sizeof(T);  // depth of one step
  static constexpr int kTilesM = kM / 16, kTilesN = kN / 8;
  float acc[kTilesM][kTilesN][4] = {};
  float total[kSettles<T> ? kTilesM : 1][kTilesN][4] = {};

  RDK_DEVICE WarpProduct(int row, int col) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    if constexpr (!kTransA) {
      at_a = TileA::chunk(row + lane % 16, lane / 16);
    } else if constexpr (sizeof(T) == 2) {
      at_a = TileA::chunk(lane % 8 + lane / 16 * 8, row / TileA::kValues ^ lane / 8 % 2);
    } else {
      at_a = TileA::value(t, row + g);
    }
    if constexpr (!kTransB) {
      at_b = TileB::chunk(col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    } else if constexpr (sizeof(T) == 2) {
      at_b = TileB::chunk(lane % 16, col / TileB::kValues ^ lane / 16);
    } else {
      at_b = TileB::value(t, col + g);
    }
  }

  RDK_DEVICE void step(const T* a, const T* b, int k) {
    step_by([&](uint32_t (&words)[4], int i) { load_a(words, a, i, k); }, b, k);
  }

  // The same with the rows of A anywhere in a tile: `place` says where this lane reads if row r of the warp's is row
  // map(r) of the tile.
  static constexpr int kPlaces = kTilesM;
  template <class Map>
  RDK_DEVICE static void place(int (&places)[kPlaces], const Map& map) {
    static_assert(!kTransA);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) places[i] = TileA::chunk(map(16 * i + lane_id() % 16), lane_id() / 16);
  }
  RDK_DEVICE void step_at(const T* a, const int (&places)[kPlaces], const T* b, int k) {
    const auto load = [&](uint32_t (&words)[4], int i) {
      ldmatrix_x4(words, a + (places[i] ^ k));
      round_tf32(words);
    };
    step_by(load, b, k);
  }

  // fn(row, column, value) for every entry of this lane, counted from the warp's corner.
  template <class Fn>
  RDK_DEVICE void each(const Fn& fn) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float settled = kSettles<T> ? total[i][j][e] : 0.0f;
          fn(16 * i + g + e / 2 * 8, 8 * j + 2 * t + e % 2, settled + acc[i][j][e]);
        }
      }
    }
  }

  // fn(row, column, value, the next column's) likewise, two at a time.
  template <class Fn>
  RDK_DEVICE void pairs(const Fn& fn) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int n = 0; n < kTilesM * kTilesN * 2; ++n) {
      const int i = n / (kTilesN * 2), j = n / 2 % kTilesN, e = n % 2 * 2;
      const float first = kSettles<T> ? total[i][j][e] : 0.0f, second = kSettles<T> ? total[i][j][e + 1] : 0.0f;
      fn(16 * i + g + e / 2 * 8, 8 * j + 2 * t, first + acc[i][j][e], second + acc[i][j][e + 1]);
    }
  }

  RDK_DEVICE void settle() {
    if constexpr (kSettles<T>) {
#pragma unroll
      for (int n = 0; n < kTilesM * kTilesN * 4; ++n) {
        const int i = n / (kTilesN * 4), j = n / 4 % kTilesN, e = n % 4;
        total[i][j][e] += acc[i][j][e];
        acc[i][j][e] = 0.0f;
      }
    }
  }

 private:
  int at_a, at_b;

  template <class LoadA>
  RDK_DEVICE void step_by(const LoadA& load_a, const T* b, int k) {
    uint32_t af[kTilesM][4];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) load_a(af[i], i);
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      uint32_t bf[4];
      load_b(bf, b, j / 2, k);
      const uint32_t left[2] = {bf[0], bf[1]}, right[2] = {bf[2], bf[3]};
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        mma<T>(acc[i][j], af[i], left);
        mma<T>(acc[i][j + 1], af[i], right);
      }
    }
  }

  // Rows 16 i .. of A as mma.sync wants them.
  RDK_DEVICE void load_a(uint32_t (&words)[4], const T* a, int i, int k) const {
    if constexpr (!kTransA) {
      ldmatrix_x4(words, a + (at_a ^ k) + 16 * i * TileA::kCols);
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(words, a + (at_a ^ 16 * i) + k * TileA::kCols);
    } else {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        words[q] = __float_as_uint(a[(at_a ^ 16 * i ^ q % 2 * 8) + (k + q / 2 * 4) * TileA::kCols]);
      }
    }
    round_tf32(words);
  }

  // Columns 16 j .. of B: two operands.
  RDK_DEVICE void load_b(uint32_t (&words)[4], const T* b, int j, int k) const {
    if constexpr (!kTransB) {
      ldmatrix_x4(words, b + (at_b ^ k) + 16 * j * TileB::kCols);
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(words, b + (at_b ^ 16 * j) + k * TileB::kCols);
    } else {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        words[q] = __float_as_uint(b[(at_b ^ 16 * j ^ q / 2 * 8) + (k + q % 2 * 4) * TileB::kCols]);
      }
    }
    round_tf32(words);
  }

  RDK_DEVICE static void round_tf32(uint32_t (&words)[4]) {
    if constexpr (kMath == Math::tf32) {
#pragma unroll
      for (int q = 0; q < 4; ++q) words[q] = to_tf32(__uint_as_float(words[q]));
    }
  }
};

// The same by fp32 multiply-adds: a lane owns kM/8 rows and kN/4 columns.
template <int kM, int kN, class TileA, bool kTransA, class TileB, bool kTransB>
struct WarpProduct<float, Math::fma, kM, kN, TileA, kTransA, TileB, kTransB> {
  static constexpr int kStep = 4, kRows = kM / 8, kCols = kN / 4;
  static_assert(kRows % 4 == 0 && kCols % 4 == 0);
  float acc[kRows][kCols] = {};
  float total[kRows][kCols] = {};
  const int row, col;

  RDK_DEVICE WarpProduct(int row, int col) : row(row), col(col) {}

  // Neighbouring entries of a lane stand where one 16-byte read reaches four of them.
  RDK_DEVICE static int row_of(int i) {
    return kTransA ? lane_id() / 4 * 4 + i / 4 * 32 + i % 4 : lane_id() / 4 + 8 * i;
  }
  RDK_DEVICE static int col_of(int j) {
    return kTransB ? lane_id() % 4 * 4 + j / 4 * 16 + j % 4 : lane_id() % 4 + 4 * j;
  }

  RDK_DEVICE void step(const float* a, const float* b, int k) {
    float av[kRows][4];
#pragma unroll
    for (int n = 0; n < kRows; n += 4) four<TileA, kTransA>(&av[n], a, k, row, n, row_of);
    step_by(av, b, k);
  }

  static constexpr int kPlaces = kRows;
  template <class Map>
  RDK_DEVICE static void place(int (&places)[kPlaces], const Map& map) {
    static_assert(!kTransA);
#pragma unroll
    for (int i = 0; i < kRows; ++i) places[i] = TileA::chunk(map(row_of(i)), 0);
  }
  RDK_DEVICE void step_at(const float* a, const int (&places)[kPlaces], const float* b, int k) {
    float av[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 v = floats(load16(a + (places[i] ^ k)));
      av[i][0] = v.x, av[i][1] = v.y, av[i][2] = v.z, av[i][3] = v.w;
    }
    step_by(av, b, k);
  }

  template <class Fn>
  RDK_DEVICE void each(const Fn& fn) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) fn(row_of(i), col_of(j), total[i][j] + acc[i][j]);
    }
  }

  RDK_DEVICE void settle() {
#pragma unroll
    for (int n = 0; n < kRows * kCols; ++n) {
      total[n / kCols][n % kCols] += acc[n / kCols][n % kCols];
      acc[n / kCols][n % kCols] = 0.0f;
    }
  }

 private:
  RDK_DEVICE void step_by(const float (&av)[kRows][4], const float* b, int k) {
#pragma unroll
    for (int n = 0; n < kCols; n += 4) {
      float bv[4][4];
      four<TileB, kTransB>(bv, b, k, col, n, col_of);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[i][n + j] = fmaf(av[i][q], bv[j][q], acc[i][n + j]);
        }
      }
    }
  }

  // to[i][q] = entry n + i of the operand at depth k + q, by four 16-byte reads.
  template <class Tile, bool kTransposed, class Place>
  RDK_DEVICE static void four(float (*to)[4], const float* tile, int k, int first, int n, const Place& place) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = kTransposed ? Tile::value(k + i, first + place(n)) : Tile::value(first + place(n + i), k);
      const float4 v = floats(load16(tile + at));
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) (kTransposed ? to[q][i] : to[i][q]) = values[q];
    }
  }
};

// A block's sums, through shared memory, as fn(row, column, four values of consecutive columns).
template <int kRows, int kCols, class Product, class Fn>
RDK_DEVICE void drain(Product& product, float* staged, int warp_row, int warp_col, const Fn& fn) {
  constexpr int kStride = kCols + 8;  // eight: two rows of a warp's pairs meet different banks
  product.each([&](int r, int c, float v) { staged[(warp_row + r) * kStride + warp_col + c] = v; });
  __syncthreads();
#pragma unroll 4
  for (int n = threadIdx.x; n < kRows * kCols / 4; n += kThreads) {
    const int r = n / (kCols / 4), c = n % (kCols / 4) * 4;
    fn(r, c, floats(load16(staged + r * kStride + c)));
  }
}

template <int kRows, int kCols>
constexpr int drain_bytes() {
  return kRows * (kCols + 8) * int(sizeof(float));
}

// A long sum of few values: what rounding takes away is carried along (Kahan), but for infinities and NaN.
struct LongSum {
  float sum = 0.0f, lost = 0.0f;

  RDK_DEVICE void add(float v) {
    const float y = v - lost, t = sum + y;
    lost = fabsf(t) <= 3.402823466e38f ? (t - sum) - y : 0.0f;
    sum = t;
  }
};

RDK_DEVICE float to_float(float x) { return x; }
RDK_DEVICE float to_float(Half x) { return __half2float(x); }
RDK_DEVICE float to_float(BFloat16 x) { return __bfloat162float(x); }

template <class T>
RDK_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, Half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

}  // namespace rdk::gpu
