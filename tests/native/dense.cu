// The dense twin of the many-rows kernels: the same blocks, ring and products, with a stored weight copied in place of
// a decoded one. Compiled for the static comparison only, never shipped.
#include "hashed_linear/many_rows.cuh"

namespace rdk::gpu {

// y = x W^T of W [cols, depth], or dx = dy W of W [depth, cols].
template <class Block, class Pass>
__global__ void __launch_bounds__(kThreads)
    dense_rows(Rows<typename Block::Value> x, Rows<typename Block::Value> w, Output<typename Block::Value> out) {
  using T = typename Block::Value;
  using Tiles = ManyRowsTiles<Block, Pass>;
  using X = typename Tiles::X;
  using W = typename Tiles::V;
  constexpr int kK = Block::kK, kStages = Block::kStages;
  RDK_DYN_SMEM(T, shared);
  const int tiles = (x.rows + Block::kM - 1) / Block::kM;
  const int row0 = blockIdx.x % tiles * Block::kM, col0 = blockIdx.x / tiles * Block::kN;
  const auto load = [&](int stage, int k) {
    T* const to = shared + stage * (X::kSize + W::kSize);
    if (k < x.cols) {
      X::template load<false>(to, x, row0, k);
      W::template load<Tiles::kTrans>(to + X::kSize, w, Tiles::kTrans ? k : col0, Tiles::kTrans ? col0 : k);
    }
    cp_async_commit();
  };
  const int warp_row = warp_id() / 2 * (Block::kM / 2), warp_col = warp_id() % 2 * (Block::kN / 2);
  typename Tiles::Product product(warp_row, warp_col);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage, stage * kK);
  int stage = 0;
  for (int k = 0; k < x.cols; k += kK) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    load(stage == 0 ? kStages - 1 : stage - 1, k + (kStages - 1) * kK);
    const T* const at = shared + stage * (X::kSize + W::kSize);
#pragma unroll
    for (int d = 0; d < kK; d += Tiles::Product::kStep) product.step(at, at + X::kSize, d);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  cp_async_wait<0>();
  __syncthreads();
  drain<Block::kM, Block::kN>(
      product, reinterpret_cast<float*>(shared), warp_row, warp_col,
      [&](int r, int c, float4 sums) { out.store4(0, row0 + r, col0 + c, sums, make_float4(0.0f, 0.0f, 0.0f, 0.0f)); });
}

#define RDK_DENSE(T, kMath, kSide)                                                                                \
  template __global__ void dense_rows<Block<T, Math::kMath, kSide, kSide>, Forward>(Rows<T>, Rows<T>, Output<T>); \
  template __global__ void dense_rows<Block<T, Math::kMath, kSide, kSide>, InputGrad>(Rows<T>, Rows<T>, Output<T>);
RDK_DENSE(BFloat16, tensor, 128)
RDK_DENSE(BFloat16, tensor, 64)
RDK_DENSE(Half, tensor, 128)
RDK_DENSE(Half, tensor, 64)
RDK_DENSE(float, tf32, 64)
RDK_DENSE(float, fma, 64)

}  // namespace rdk::gpu
