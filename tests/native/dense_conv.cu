// The dense twin of the low-rank chains: a convolution as an implicit product of x's pixels, gathered tap by tap, with
// a stored weight, by the same blocks, copies and epilogue. Compiled for the static comparison only, never shipped.
#include "common/chain_launch.cuh"

namespace rdk::gpu {

// `first` is the weight [kh * kw] of [O][C]; a CTA takes 64 pixels and 128 (fp32: 64) channels of y.
template <class C>
__global__ void __launch_bounds__(kThreads) dense_conv(ChainArgs<typename C::T> args) {
  using T = typename C::T;
  using A = typename C::A;
  constexpr int kAtOnce = kThreads / A::kChunks, kMine = A::kRows / kAtOnce;
  RDK_DYN_SMEM(T, ring);
  const int across = args.x.tiles, down = args.y.tiles;
  const Spot tile{int(blockIdx.x) / across % down, int(blockIdx.x) % across};
  const int image = blockIdx.x / across / down, pixels = args.y.tile * args.x.tile, col0 = blockIdx.y * C::kOut;
  const int mine = threadIdx.x % A::kChunks * A::kValues;
  const int64_t base = image * args.in.image;
  int y[kMine], x[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int r = int(threadIdx.x) / A::kChunks + i * kAtOnce;
    y[i] = r < pixels ? args.y.origin(tile.y) + r / args.x.tile * args.y.stride : -(1 << 30);
    x[i] = args.x.origin(tile.x) + r % args.x.tile * args.x.stride;
  }
  int i_tap = 0, j_tap = 0, k = 0;
  const auto load = [&](int stage) {
    T* const to = ring + stage * (A::kSize + C::Wide::kSize);
    const int bytes = min(max((args.in.channels - k - mine) * int(sizeof(T)), 0), 16);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int v = y[i] + i_tap * args.y.dilation, u = x[i] + j_tap * args.x.dilation;
      const bool inside = bytes > 0 && unsigned(v) < unsigned(args.y.in) && unsigned(u) < unsigned(args.x.in);
      const T* const from = args.in.data + (inside ? base + v * args.in.row + u * args.in.pixel + k + mine : 0);
      cp_async16(to + A::chunk(int(threadIdx.x) / A::kChunks + i * kAtOnce, threadIdx.x % A::kChunks), from,
                 inside ? bytes : 0);
    }
    C::Wide::template load<false>(to + A::kSize, args.first[i_tap * args.x.taps + j_tap], col0, k);
    if ((k += C::kK) >= args.in.channels) k = 0, ++j_tap;
    if (j_tap == args.x.taps) j_tap = 0, ++i_tap;
  };
  typename C::Last product(warp_row(), warp_col<C::kOut>());
  stream(args.y.taps * args.x.taps * ((args.in.channels + C::kK - 1) / C::kK), load, [&](int stage, int n) {
    const T* const from = ring + stage * (A::kSize + C::Wide::kSize);
#pragma unroll(C::kUnroll)
    for (int d = 0; d < C::kK; d += C::Last::kStep) product.step(from, from + A::kSize, d);
    settle_sometimes<C>(product, n);
  });
  store_tile<C>(product, args, reinterpret_cast<float*>(ring), image, tile, col0);
}

template __global__ void dense_conv<Chain<BFloat16, Math::tensor>>(ChainArgs<BFloat16>);
template __global__ void dense_conv<Chain<float, Math::fma>>(ChainArgs<float>);

}  // namespace rdk::gpu
