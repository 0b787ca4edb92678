// Few rows: V is read once, straight into registers, by warps that each sum a part of the depth; bandwidth is all.
#pragma once

#include "hashed_linear/many_rows.cuh"

namespace rdk::gpu {

constexpr int kFewWarps = 8, kFewThreads = 32 * kFewWarps;
constexpr int kForwardCols = 32, kInputGradCols = 128;  // columns of the output of one CTA

// How many rows one launch takes: the tensor cores' 16, or what fp32 sums fit in registers.
template <class T>
constexpr int kFewRows = sizeof(T) == 2 ? 16 : 8;

template <class T>
struct FewRowsArgs {
  Rows<T> x;
  const T* bank;
  int64_t bank_bytes;  // a multiple of 16 where it is copied to shared memory
  Map map;
  Output<T> out;
};

// Lanes 16 v .. of a row, zero past its end; `row` past the last one too.
template <class T>
RDK_DEVICE void row_vector(uint32_t (&words)[kWords<T>], const Rows<T>& x, int row, int v) {
  const int left = row < x.rows ? x.cols - 16 * v : 0;
  const T* from = x.data + int64_t(row) * x.stride + 16 * v;
  if (left >= 16) {
#pragma unroll
    for (int n = 0; n < kWords<T> / 4; ++n) {
      const uint4 four = load16_const(from + n * 16 / sizeof(T));
      words[4 * n] = four.x, words[4 * n + 1] = four.y, words[4 * n + 2] = four.z, words[4 * n + 3] = four.w;
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < kWords<T>; ++n) {
    if constexpr (sizeof(T) == 4) {
      words[n] = n < left ? __float_as_uint(from[n]) : 0u;
    } else {
      const uint16_t* values = reinterpret_cast<const uint16_t*>(from);
      const uint32_t low = 2 * n < left ? values[2 * n] : 0, high = 2 * n + 1 < left ? values[2 * n + 1] : 0;
      words[n] = low | high << 16;
    }
  }
}

// Columns c .. c+3 (c a multiple of four) of a row of 16-bit values as two pairs, zero past its end.
template <class T>
RDK_DEVICE void row_quad(uint32_t& low, uint32_t& high, const Rows<T>& x, int row, int c) {
  const T* from = x.data + int64_t(row) * x.stride + c;
  const int left = row < x.rows ? x.cols - c : 0;
  if (left >= 4) {
    const uint2 four = load8_const(from);
    low = four.x, high = four.y;
    return;
  }
  const uint16_t* values = reinterpret_cast<const uint16_t*>(from);
  low = left > 0 ? values[0] : 0;
  low |= left > 1 ? uint32_t(values[1]) << 16 : 0;
  high = left > 2 ? values[2] : 0;
}

// Warp by warp, in order, into one [kRows, kCols] block of sums; the whole CTA then passes it to the output.
template <int kRows, int kCols, class T, class Fn, class More>
RDK_DEVICE void add_warps(float* sums, const Output<T>& out, int col0, const Fn& each, const More& more) {
  for (int warp = 0; warp < kFewWarps; ++warp) {
    if (warp_id() == warp) {
      each([&](int r, int c, float v) {
        float& sum = sums[r * (kCols + 4) + c];
        sum = warp ? sum + v : v;
      });
    }
    __syncthreads();
  }
  for (int n = threadIdx.x; n < kRows * kCols / 4; n += kFewThreads) {
    const int r = n / (kCols / 4), c = n % (kCols / 4) * 4;
    if (r < out.rows) {
      out.store4(blockIdx.y, r, col0 + c, floats(load16(sums + r * (kCols + 4) + c)), more(c));
    }
  }
}

// The bank for this CTA: in shared memory after one pass over it, or where it is.
template <class T, bool kShared>
RDK_DEVICE const T* resident_bank(const FewRowsArgs<T>& args, T* shared) {
  if constexpr (kShared) {
    for (int64_t at = threadIdx.x * 16; at < args.bank_bytes; at += kFewThreads * 16) {
      cp_async16(reinterpret_cast<char*>(shared) + at, reinterpret_cast<const char*>(args.bank) + at, 16);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    return shared;
  } else {
    return args.bank;
  }
}

// The steps of `total` that this warp of this CTA takes.
RDK_DEVICE int2 my_steps(int total) {
  const int64_t parts = int64_t(gridDim.y) * kFewWarps, part = int64_t(blockIdx.y) * kFewWarps + warp_id();
  return make_int2(int(total * part / parts), int(total * (part + 1) / parts));
}

// y = x V^T. A step is 64 inputs: lane (g, t) holds vector t of rows g, g + 8, g + 16, g + 24 of the CTA's 32 of V. On
// tensor cores these registers are the B operand as they are: any order of the depth will do if x has it too.
template <class T, Granule kGranule, bool kShared>
__global__ void __launch_bounds__(kFewThreads, 1) few_rows(FewRowsArgs<T> args) {
  constexpr int kRows = kFewRows<T>;
  RDK_DYN_SMEM(float, sums);  // [kRows, kForwardCols + 4], then the bank
  const Weights<T, kGranule, kShared> weights{
      resident_bank<T, kShared>(args, reinterpret_cast<T*>(sums + kRows * (kForwardCols + 4))), args.map};
  const int g = lane_id() / 4, t = lane_id() % 4, o0 = blockIdx.x * kForwardCols, depth = args.x.cols;
  const int2 steps = my_steps((depth + 63) / 64);

  // Rows first, first + 1, ... of this lane's four, at vector `at`.
  const auto decode = [&]<int kMany>(uint32_t (&v)[kMany][kWords<T>], int first, int at) {
    uint32_t aux[kMany];
    const uint32_t shared = weights.kOneHash ? weights.hash(o0 + g, at) : 0;
#pragma unroll
    for (int j = 0; j < kMany; ++j) {
      const uint32_t o = o0 + 8 * (first + j) + g;
      weights.fetch(v[j], aux[j], weights.kOneHash ? shared : weights.hash(o, at), o, at);
    }
#pragma unroll
    for (int j = 0; j < kMany; ++j) {
      weights.sign(v[j], aux[j]);
      if (16 * at + 16 > depth) cut<T>(v[j], depth - 16 * at);
    }
  };
  const auto more = [&](int c) {
    float4 bias = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if constexpr (kGranule == Granule::element) {
      if (args.out.hashed_bias && blockIdx.y == 0) {
        const uint32_t o = o0 + c;
        bias = make_float4(weights.element(o, depth), weights.element(o + 1, depth), weights.element(o + 2, depth),
                           weights.element(o + 3, depth));
      }
    }
    return bias;
  };

  if constexpr (sizeof(T) == 2) {
    float acc[4][4] = {};
    for (int step = steps.x; step < steps.y; ++step) {
      uint32_t v[4][8], low[8], high[8];
      decode(v, 0, 4 * step + t);
      row_vector(low, args.x, g, 4 * step + t);
      row_vector(high, args.x, g + 8, 4 * step + t);
#pragma unroll
      for (int k = 0; k < 8; k += 2) {
        const uint32_t a[4] = {low[k], high[k], low[k + 1], high[k + 1]};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t b[2] = {v[j][k], v[j][k + 1]};
          mma<T>(acc[j], a, b);
        }
      }
    }
    const auto each = [&](const auto& add) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) add(g + e / 2 * 8, 8 * j + 2 * t + e % 2, acc[j][e]);
      }
    };
    add_warps<kRows, kForwardCols>(sums, args.out, o0, each, more);
  } else {
    float acc[kRows][4] = {};
    for (int step = steps.x; step < steps.y; ++step) {
#pragma unroll
      for (int pair = 0; pair < 4; pair += 2) {
        uint32_t v[2][16];
        decode(v, pair, 4 * step + t);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          if (m >= args.x.rows) break;
          uint32_t x[16];
          row_vector(x, args.x, m, 4 * step + t);
#pragma unroll
          for (int l = 0; l < 16; ++l) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              acc[m][pair + j] = fmaf(__uint_as_float(x[l]), __uint_as_float(v[j][l]), acc[m][pair + j]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        acc[m][j] += __shfl_xor_sync(0xffffffffu, acc[m][j], 1);
        acc[m][j] += __shfl_xor_sync(0xffffffffu, acc[m][j], 2);
      }
    }
    const auto each = [&](const auto& add) {
      if (t != 0) return;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) add(m, 8 * j + g, acc[m][j]);
      }
    };
    add_warps<kRows, kForwardCols>(sums, args.out, o0, each, more);
  }
}

// dx = dy V. A step is 16 outputs: lane (g, t) holds vector g of the CTA's eight, of rows 4t .. 4t+3.
template <class T, Granule kGranule, bool kShared>
__global__ void __launch_bounds__(kFewThreads) few_rows_grad(FewRowsArgs<T> args) {
  constexpr int kRows = kFewRows<T>;
  RDK_DYN_SMEM(float, sums);  // [kRows, kInputGradCols + 4], then the bank
  const Weights<T, kGranule, kShared> weights{
      resident_bank<T, kShared>(args, reinterpret_cast<T*>(sums + kRows * (kInputGradCols + 4))), args.map};
  const int g = lane_id() / 4, t = lane_id() % 4, i0 = blockIdx.x * kInputGradCols, depth = args.x.cols;
  const uint32_t at = i0 / 16 + g;
  const int2 steps = my_steps((depth + 15) / 16);
  const auto none = [](int) { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); };

  if constexpr (sizeof(T) == 2) {
    float acc[16][4] = {};
    for (int step = steps.x; step < steps.y; ++step) {
      const int o = 16 * step + 4 * t;
      uint32_t v[4][8], aux[4];
      const uint32_t shared = weights.kOneHash ? weights.hash(o, at) : 0;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        weights.fetch(v[r], aux[r], weights.kOneHash ? shared : weights.hash(o + r, at), o + r, at);
      }
      uint32_t a[4];  // rows g and g + 8 of dy, columns o .. o+3
      row_quad(a[0], a[2], args.x, g, o);
      row_quad(a[1], a[3], args.x, g + 8, o);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        weights.sign(v[r], aux[r]);
        if (o + r >= depth) cut<T>(v[r], 0);
      }
#pragma unroll
      for (int l = 0; l < 16; ++l) {  // lane l of four rows: pairs along the depth
        const uint32_t pick = l % 2 ? 0x7632u : 0x5410u;
        const uint32_t b[2] = {__byte_perm(v[0][l / 2], v[1][l / 2], pick),
                               __byte_perm(v[2][l / 2], v[3][l / 2], pick)};
        mma<T>(acc[l], a, b);
      }
    }
    const auto each = [&](const auto& add) {
#pragma unroll
      for (int l = 0; l < 16; ++l) {
#pragma unroll
        for (int e = 0; e < 4; ++e) add(g + e / 2 * 8, 16 * (2 * t + e % 2) + l, acc[l][e]);
      }
    };
    add_warps<kRows, kInputGradCols>(sums, args.out, i0, each, none);
  } else {
    float acc[kRows][16] = {};
    for (int step = steps.x; step < steps.y; ++step) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int o = 16 * step + 4 * t + r;
        uint32_t v[16];
        weights.vector(v, o, at);
        if (o >= depth) cut<T>(v, 0);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          if (m >= args.x.rows) break;
          const float d = o < depth ? args.x.data[int64_t(m) * args.x.stride + o] : 0.0f;
#pragma unroll
          for (int l = 0; l < 16; ++l) acc[m][l] = fmaf(d, __uint_as_float(v[l]), acc[m][l]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int l = 0; l < 16; ++l) {
        acc[m][l] += __shfl_xor_sync(0xffffffffu, acc[m][l], 1);
        acc[m][l] += __shfl_xor_sync(0xffffffffu, acc[m][l], 2);
      }
    }
    const auto each = [&](const auto& add) {
      if (t != 0) return;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int l = 0; l < 16; ++l) add(m, 16 * g + l, acc[m][l]);
      }
    };
    add_warps<kRows, kInputGradCols>(sums, args.out, i0, each, none);
  }
}

}  // namespace rdk::gpu
