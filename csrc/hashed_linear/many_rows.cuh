// Many rows: a block of V is decoded once per CTA into shared memory and multiplied with a block of x (or dy), whose
// blocks arrive through a ring of asynchronous copies.
#pragma once

#include "hashed_linear/weights.cuh"

namespace rdk::gpu {

// y = scale * sums + bias in T, or one of several ordered parts of the sums in fp32.
template <class T>
struct Output {
  T* y;            // [rows, cols]
  float* partial;  // [parts, rows, cols], or null
  const T* bias;   // [cols], or null
  int rows, cols;
  float scale;
  bool hashed_bias;  // scale * V[col, depth] is added

  RDK_DEVICE void store4(int part, int r, int c, float4 v, float4 more) const {
    if (r >= rows || c >= cols) return;
    const float sums[4] = {v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w};
    const int n = cols - c < 4 ? cols - c : 4;
    if (partial) {
      float* to = partial + (int64_t(part) * rows + r) * cols + c;
      if (n == 4 && cols % 4 == 0) {
        store16(to, words(make_float4(sums[0], sums[1], sums[2], sums[3])));
      } else {
        for (int i = 0; i < n; ++i) to[i] = sums[i];
      }
      return;
    }
    T out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = from_float<T>(scale * sums[i] + (bias && i < n ? to_float(bias[c + i]) : 0.0f));
    }
    T* to = y + int64_t(r) * cols + c;
    if (n == 4 && cols % 4 == 0) {
      if constexpr (sizeof(T) == 4) {
        store16(to, words(make_float4(out[0], out[1], out[2], out[3])));
      } else {
        uint2 packed;
        memcpy(&packed, out, 8);
        store8(to, packed);
      }
    } else {
      for (int i = 0; i < n; ++i) to[i] = out[i];
    }
  }
};

template <class T, Math kMath_, int kM_, int kN_>
struct Block {
  using Value = T;
  static constexpr Math kMath = kMath_;
  static constexpr int kM = kM_, kN = kN_, kK = 128 / sizeof(T), kStages = 3;
};

// y = x V^T: V's rows are y's columns, its lanes are summed over.
struct Forward {
  static constexpr bool kTransposed = false;
};
// dx = dy V: V's rows are summed over, its lanes are dx's columns.
struct InputGrad {
  static constexpr bool kTransposed = true;
};

template <class T>
struct ManyRowsArgs {
  Rows<T> x;  // x or dy; its columns are the depth
  const T* bank;
  Map map;
  Output<T> out;
  int span;  // depth of one part, a multiple of the block's
};

template <class Block, class Pass>
struct ManyRowsTiles {
  using T = typename Block::Value;
  static constexpr bool kTrans = Pass::kTransposed;
  static constexpr int kRowsV = kTrans ? Block::kK : Block::kN, kColsV = kTrans ? Block::kN : Block::kK;
  using X = Tile<T, Block::kM, Block::kK>;
  using V = Tile<T, kRowsV, kColsV, kTrans && Block::kMath == Math::tf32>;
  using Product = WarpProduct<T, Block::kMath, Block::kM / 2, Block::kN / 2, X, false, V, kTrans>;
  static constexpr int kRing = (Block::kStages * X::kSize + 2 * V::kSize) * int(sizeof(T));
  static constexpr int kBytes = kRing > drain_bytes<Block::kM, Block::kN>() ? kRing
                                                                            : drain_bytes<Block::kM, Block::kN>();
};

template <class Block, class Pass, Granule kGranule>
__global__ void __launch_bounds__(kThreads, kResident<Block::kMath>)
    many_rows(ManyRowsArgs<typename Block::Value> args) {
  using T = typename Block::Value;
  using Tiles = ManyRowsTiles<Block, Pass>;
  using X = typename Tiles::X;
  using V = typename Tiles::V;
  constexpr int kK = Block::kK, kStages = Block::kStages, kRowsV = Tiles::kRowsV, kColsV = Tiles::kColsV;
  RDK_DYN_SMEM(T, shared);
  T* const ring = shared;                        // [kStages][kM, kK]
  T* const decoded = ring + kStages * X::kSize;  // [2][V's block]

  const Weights<T, kGranule> weights{args.bank, args.map};
  const int tiles = (args.x.rows + Block::kM - 1) / Block::kM;
  const int row0 = blockIdx.x % tiles * Block::kM, col0 = blockIdx.x / tiles * Block::kN;  // CTAs in step share V
  const int depth = args.x.cols, begin = blockIdx.y * args.span;
  const int end = depth - begin < args.span ? depth : begin + args.span;

  using Decode = Decoder<T, Weights<T, kGranule>, kRowsV, kColsV / 16, V>;
  Decode decode;
  const auto fetch = [&](uint32_t k) {
    decode.fetch(weights, Tiles::kTrans ? k : col0, (Tiles::kTrans ? col0 : k) / 16);
  };
  const auto load = [&](int stage, int k) { X::template load<false>(ring + stage * X::kSize, args.x, row0, k); };

  // The last block goes first: it may stick out of V, and what that takes stays out of the loop.
  const int warp_row = warp_id() / 2 * (Block::kM / 2), warp_col = warp_id() % 2 * (Block::kN / 2);
  typename Tiles::Product product(warp_row, warp_col);
  const int last = begin < end ? begin + (end - begin - 1) / kK * kK : begin - kK;
  if (begin < end) {
    load(0, last);
    cp_async_commit();
#pragma unroll
    for (int stage = 1; stage < kStages - 1; ++stage) {
      if (begin + (stage - 1) * kK < last) load(stage, begin + (stage - 1) * kK);
      cp_async_commit();
    }
    fetch(last);
    decode.store(decoded);
    if (last + kK > depth) {
      Decode::clear(decoded, Tiles::kTrans ? depth - last : kRowsV, Tiles::kTrans ? kColsV : depth - last);
    }
  }
  int stage = 0, buffer = 0;
  for (int next = begin; next <= last; next += kK) {  // the block decoded beside this product; at `last` none is left
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (next + (kStages - 2) * kK < last) {
      X::template load<false, true>(ring + (stage == 0 ? kStages - 1 : stage - 1) * X::kSize, args.x, row0,
                                    next + (kStages - 2) * kK);
    }
    cp_async_commit();
    if (next < last) fetch(next);
#pragma unroll
    for (int d = 0; d < kK; d += Tiles::Product::kStep) {
      product.step(ring + stage * X::kSize, decoded + buffer * V::kSize, d);
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
    buffer ^= 1;
    if (next < last) decode.store(decoded + buffer * V::kSize);
    if (kSettles<T> && (next - begin) % kChain == 0) product.settle();
  }
  cp_async_wait<0>();
  __syncthreads();
  drain<Block::kM, Block::kN>(product, reinterpret_cast<float*>(shared), warp_row, warp_col,
                              [&](int r, int c, float4 sums) {
                                float4 more = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                                if constexpr (kGranule == Granule::element) {
                                  if (args.out.hashed_bias && blockIdx.y == 0) {
                                    const uint32_t o = col0 + c;
                                    more = make_float4(weights.element(o, depth), weights.element(o + 1, depth),
                                                       weights.element(o + 2, depth), weights.element(o + 3, depth));
                                  }
                                }
                                args.out.store4(blockIdx.y, row0 + r, col0 + c, sums, more);
                              });
}

// y = scale * (partial[0] + partial[1] + ...) + bias, in that order.
template <class T>
__global__ void __launch_bounds__(256)
    combine(const float* partial, int parts, int64_t size, int cols, const T* bias, float scale, T* y) {
  const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (at >= size) return;
  LongSum sum;
  for (int part = 0; part < parts; ++part) sum.add(partial[part * size + at]);
  y[at] = from_float<T>(scale * sum.sum + (bias ? to_float(bias[at % cols]) : 0.0f));
}

// Any strides to aligned rows, with a column of ones after them where `ones`.
template <class T>
__global__ void __launch_bounds__(256) pack_rows(const T* from, int64_t row_stride, int64_t col_stride, int rows,
                                                 int cols, bool ones, T* to, int64_t to_stride) {
  const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
  const int width = cols + ones;
  if (at >= int64_t(rows) * width) return;
  const int64_t r = at / width, c = at % width;
  to[r * to_stride + c] = c < cols ? from[r * row_stride + c * col_stride] : from_float<T>(1.0f);
}

}  // namespace rdk::gpu
