// The bank's gradient, without atomics: every slot has one owner that adds its members in coordinate order.
//
// Granules of at least 32 x 32: the owner multiplies its members' dy and x itself (bank_owner). Finer ones: panels of
// dV = dy^T x are multiplied (bank_panel), then the slots' owners collect from them (bank_gather).
#pragma once

#include "hashed_linear/many_rows.cuh"

namespace rdk::gpu {

// A slot's members among `granules` granules: order[first[slot] .. first[slot + 1] - 1], counted along rows of
// `across`.
struct Members {
  const int* order;
  const int* first;
  int across;
};

// A block of dV = dy^T x in fp32; both operands stand with their depth (the batch) down the columns.
template <class T, Math kMath_, int kM_, int kN_>
struct PanelBlock {
  using Value = T;
  static constexpr Math kMath = kMath_;
  static constexpr int kM = kM_, kN = kN_, kK = 32, kStages = 3;
  static constexpr bool kByWord = kMath == Math::tf32;
  using Y = Tile<T, kK, kM, kByWord>;
  using X = Tile<T, kK, kN, kByWord>;
  using Product = WarpProduct<T, kMath, kM / 2, kN / 2, Y, true, X, true>;
  static constexpr int kRing = kStages * (Y::kSize + X::kSize) * int(sizeof(T));
  static constexpr int kBytes = kRing > drain_bytes<kM, kN>() ? kRing : drain_bytes<kM, kN>();
};

// panel[r, c] = sum_m dy[m, o0 + r] x[m, i0 + c] for r < height, c < width (a multiple of four); zero past dy's and x's
// columns.
template <class Block>
__global__ void __launch_bounds__(kThreads, kResident<Block::kMath>)
    bank_panel(Rows<typename Block::Value> dy, Rows<typename Block::Value> x, int o0, int i0, int height, int width,
               float* panel) {
  using T = typename Block::Value;
  using Y = typename Block::Y;
  using X = typename Block::X;
  RDK_DYN_SMEM(T, shared);
  T* const ring = shared;  // [kStages][kK, kM + kN]
  const int across = (width + Block::kN - 1) / Block::kN;
  const int row0 = blockIdx.x / across * Block::kM, col0 = blockIdx.x % across * Block::kN;
  const int steps = (dy.rows + Block::kK - 1) / Block::kK;
  const auto stage = [&](int step) { return ring + step % Block::kStages * (Y::kSize + X::kSize); };
  const auto load = [&](int step) {
    if (step < steps) {
      Y::template load<true>(stage(step), dy, step * Block::kK, o0 + row0);
      X::template load<true>(stage(step) + Y::kSize, x, step * Block::kK, i0 + col0);
    }
    cp_async_commit();
  };

  const int warp_row = warp_id() / 2 * (Block::kM / 2), warp_col = warp_id() % 2 * (Block::kN / 2);
  typename Block::Product product(warp_row, warp_col);
  for (int step = 0; step < Block::kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Block::kStages - 2>();
    __syncthreads();
    load(step + Block::kStages - 1);
#pragma unroll
    for (int k = 0; k < Block::kK; k += Block::Product::kStep) {
      product.step(stage(step), stage(step) + Y::kSize, k);
    }
    if (kSettles<T> && (step + 1) * Block::kK % kChain == 0) product.settle();
  }
  cp_async_wait<0>();
  __syncthreads();
  drain<Block::kM, Block::kN>(
      product, reinterpret_cast<float*>(shared), warp_row, warp_col, [&](int r, int c, float4 v) {
        r += row0, c += col0;
        if (r >= height || c >= width) return;
        // a select, not a product: NaN and infinity of a neighbour must not reach entries that V does not have
        const bool row = o0 + r < dy.cols;
        const int left = row ? x.cols - i0 - c : 0;
        store16(panel + int64_t(r) * width + c, words(make_float4(left > 0 ? v.x : 0.0f, left > 1 ? v.y : 0.0f,
                                                                  left > 2 ? v.z : 0.0f, left > 3 ? v.w : 0.0f)));
      });
}

// part[piece, slot] = (more ? part[piece, slot] : 0) + a fixed piece of its members in the panel that starts with
// granule (p0, q0). A thread owns kQuad consecutive values of a slot, which no xor of the map takes apart.
template <int kQuad>
__global__ void __launch_bounds__(128) bank_gather(const float* panel, int width, Members members, Map map, int p0,
                                                   int q0, int64_t size, bool more, float* part) {
  const int64_t at = (int64_t(blockIdx.x) * 128 + threadIdx.x) * kQuad;
  if (at >= size) return;
  const int go = 1 << map.go_shift, gi = 1 << map.gi_shift, within = int(at & (go * gi - 1));
  const int slot = int(at >> (map.go_shift + map.gi_shift)), row = within >> map.gi_shift, col = within & (gi - 1);
  const int begin = members.first[slot], count = members.first[slot + 1] - begin, pieces = gridDim.y,
            piece = blockIdx.y;
  const int low = begin + int(int64_t(count) * piece / pieces),
            high = begin + int(int64_t(count) * (piece + 1) / pieces);
  float* const total = part + piece * size;
  LongSum sums[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) sums[i].sum = more ? total[at + i] : 0.0f;
#pragma unroll 4
  for (int n = low; n < high; ++n) {
    const int granule = members.order[n], p = granule / members.across, q = granule % members.across;
    const uint32_t h = hash_finish(hash_prefix(uint32_t(p0 + p), map.seed) + uint32_t(q0 + q) * kPrime3);
    if constexpr (kQuad == 1) {
      sums[0].add(__uint_as_float(__float_as_uint(panel[int64_t(p) * width + q]) ^ h << 31));
    } else {
      const uint32_t aux = aux_of(h);
      // both xors are their own inverse
      const int r = row ^ int(aux >> 24 & map.go_mask()), c = col ^ int((aux >> 8 & map.vector_mask()) * 16);
      const float4 v = floats(load16_const(panel + int64_t(p * go + r) * width + q * gi + c));
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const int lane = (c + i) % 16, shift = 31 - lane / 2 - lane % 2 * 16;
        sums[i].add(__uint_as_float(__float_as_uint(values[i]) ^ ((aux << shift) & kSignBit)));
      }
    }
  }
  if constexpr (kQuad == 4) {
    store16(total + at, words(make_float4(sums[0].sum, sums[1].sum, sums[2].sum, sums[3].sum)));
  } else {
    total[at] = sums[0].sum;
  }
}

template <class T, Math kMath>
struct OwnerBlock {
  static constexpr int kSide = 32, kStages = 4, kStep = 32 / sizeof(T);  // depth of one warp's step
  static constexpr int kK = kWarps * (kMath == Math::fma ? 8 : kStep);
  static constexpr bool kByWord = kMath == Math::tf32;
  using Side = Tile<T, kK, kSide, kByWord>;
  using Product = WarpProduct<T, kMath, kSide, kSide, Side, true, Side, true>;
  static constexpr int kRing = 2 * kStages * Side::kSize * int(sizeof(T));
  static constexpr int kSums = kSide * (kSide + 8);  // of one warp
  static constexpr int kBytes = kRing + kWarps * kSums * int(sizeof(float));
};

// part[piece, slot]: a CTA owns 32 x 32 values of one slot and walks through a fixed piece of the slot's members. Each
// warp takes a part of the batch and has sums of its own, in the bank's order: a member's signs and xors are applied
// once, when its product is added.
template <class T, Math kMath>
__global__ void __launch_bounds__(kThreads, kResident<kMath>)
    bank_owner(Rows<T> dy, Rows<T> x, Members members, Map map, int pieces, float* part) {
  using Block = OwnerBlock<T, kMath>;
  using Side = typename Block::Side;
  constexpr int kSide = Block::kSide, kStages = Block::kStages;
  RDK_DYN_SMEM(T, shared);
  T* const ring = shared;                                                          // [kStages][2][kK, kSide]
  float* const sums = reinterpret_cast<float*>(ring + 2 * kStages * Side::kSize);  // [kWarps][kSide, kSide + 8]

  const int wide = (1 << map.gi_shift) / kSide, blocks = (1 << map.go_shift) / kSide * wide;
  const int slot = blockIdx.x / blocks, r0 = blockIdx.x % blocks / wide * kSide, c0 = blockIdx.x % wide * kSide;
  const int begin = members.first[slot], count = members.first[slot + 1] - begin, piece = blockIdx.y;
  const int low = begin + int(int64_t(count) * piece / pieces),
            high = begin + int(int64_t(count) * (piece + 1) / pieces);
  const int steps = (dy.rows + Block::kK - 1) / Block::kK;
  const int64_t total = int64_t(high - low) * steps;

  struct Member {
    int o, i;  // where the CTA's 32 x 32 values stand in V, but for the low bits of the xors
    uint32_t aux;
  };
  const auto member = [&](int n) {
    const int granule = members.order[n], p = granule / members.across, q = granule % members.across;
    const uint32_t aux = aux_of(hash_finish(hash_prefix(uint32_t(p), map.seed) + uint32_t(q) * kPrime3));
    const int row = r0 ^ int(aux >> 24 & map.go_mask() & ~31u),
              col = c0 ^ int((aux >> 8 & map.vector_mask() & ~1u) * 16);
    return Member{(p << map.go_shift) + row, (q << map.gi_shift) + col, aux};
  };
  const auto load = [&](int64_t n) {
    if (n < total) {
      const Member to = member(low + int(n / steps));
      const int m = int(n % steps) * Block::kK;
      T* const stage = ring + n % kStages * 2 * Side::kSize;
      Side::template load<true>(stage, dy, m, to.o);
      Side::template load<true>(stage + Side::kSize, x, m, to.i);
    }
    cp_async_commit();
  };

  for (int n = threadIdx.x; n < kWarps * Block::kSums; n += kThreads) sums[n] = 0.0f;
  __syncthreads();
  for (int n = 0; n < kStages - 1; ++n) load(n);
  int64_t n = 0;
  for (int at = low; at < high; ++at) {
    typename Block::Product product(0, 0);
    for (int step = 0; step < steps; ++step, ++n) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      load(n + kStages - 1);
      const T* stage = ring + n % kStages * 2 * Side::kSize;
#pragma unroll
      for (int k = 0; k < Block::kK / kWarps; k += Block::Product::kStep) {
        product.step(stage, stage + Side::kSize, warp_id() * (Block::kK / kWarps) + k);
      }
      if (kSettles<T> && (step + 1) * (Block::kK / kWarps) % kChain == 0) product.settle();
    }
    const Member to = member(at);
    const int xor_r = int(to.aux >> 24 & map.go_mask() & 31u), xor_c = int((to.aux >> 8 & map.vector_mask() & 1u) * 16);
    float* const mine = sums + warp_id() * Block::kSums;
    product.each([&](int r, int c, float v) {
      if (to.o + r >= dy.cols || to.i + c >= x.cols) return;
      const int lane = c % 16, shift = 31 - lane / 2 - lane % 2 * 16;
      mine[(r ^ xor_r) * (kSide + 8) + (c ^ xor_c)] +=
          __uint_as_float(__float_as_uint(v) ^ ((to.aux << shift) & kSignBit));
    });
  }
  cp_async_wait<0>();
  __syncthreads();
  float* const out = part + (int64_t(piece) << (map.go_shift + map.gi_shift)) * map.slots +
                     (int64_t(slot) << (map.go_shift + map.gi_shift));
  for (int n = threadIdx.x; n < kSide * kSide; n += kThreads) {
    const int r = n / kSide, c = n % kSide;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * Block::kSums + r * (kSide + 8) + c];
    out[(int64_t(r0 + r) << map.gi_shift) + c0 + c] = sum;
  }
}

}  // namespace rdk::gpu
