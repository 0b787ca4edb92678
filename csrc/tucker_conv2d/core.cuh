// Tucker-2 convolution on CUDA: the inner product of a tile and its halo stays in shared memory for all of its ranks, T
// is the core's product with it, tap by tap.
#pragma once

#include "common/chain_launch.cuh"

namespace rdk::gpu {

template <class C>
class Core {
 public:
  using T = typename C::T;

  static constexpr int rows(const ChainArgs<T>& args) { return args.y.tile * args.x.tile; }
  static constexpr int64_t bytes(const ChainArgs<T>& args) {
    const int64_t blocks = (args.first.rows.rows + kRankBlock - 1) / kRankBlock;
    return int64_t(args.y.slots) * args.x.slots * blocks * kRankBlock * sizeof(T);
  }
  static double fill_work(const ChainArgs<T>& args) {
    const double halo = (args.y.slots * args.x.slots + 63) / 64 * 64, inner = args.first.rows.rows;
    return inner * (halo * args.in.channels + 64.0 * args.y.taps * args.x.taps * args.ranks);
  }
  RDK_HOST_DEVICE static int last_taps(const ChainArgs<T>&) { return 1; }

  RDK_DEVICE Core(const ChainArgs<T>& args, unsigned char* shared, T* ring, int64_t image, Spot tile)
      : args_(args), halo_{reinterpret_cast<T*>(shared), args.y.slots * args.x.slots}, ring_(ring) {
    const int across = args.x.slots;
    for (int rank = 0; rank < args.first.rows.rows; rank += kRankBlock) {
      first_product<C>(
          args, ring, image, tile, halo_.rows, rank, 1, [&](int r) { return Spot{r / across, r % across}; },
          [&](int r, int c, auto... v) { halo_.put(r, rank + c, v...); });
    }
  }

  RDK_DEVICE int shift(int m, int) const { return m; }

  RDK_DEVICE void fill(const RankMap<C>& map, int rank0, int ranks) const {
    const Axis &y = args_.y, &x = args_.x;
    for (int block = 0; block < ranks; block += kRankBlock) {
      typename C::Inner product(warp_row(), warp_col<kRankBlock>());
      tap_product<C, typename C::B>(product, ring_, halo_, args_.middle, y.taps * x.taps, rank0 + block, 0,
                                    args_.first.rows.rows, [&](int m, int tap) {
                                      m = min(m, map.rows - 1);
                                      const int row = m / x.tile * y.stride + tap / x.taps * y.dilation;
                                      return row * x.slots + m % x.tile * x.stride + tap % x.taps * x.dilation;
                                    });
      pour<C>(product, 0, map.rows, ranks - block, [&](int r, int c, auto... v) { map.put(r, block + c, v...); });
    }
  }

 private:
  const ChainArgs<T>& args_;
  const RankMap<C> halo_;
  T* const ring_;
};

// y = act(conv(x, W) + bias + residual), W[o, c, i, j] = sum_{p, q} outer[o, q] core[q, p, i, j] inner[p, c].
template <class T>
struct CoreProblem {
  Maps<const T> x;
  Maps<T> y;
  const T *inner, *core, *outer;
  int64_t inner_ranks, outer_ranks, kh, kw;
  Map4<const T> residual;
  const T* bias;
  Activation activation;
  Geometry geometry;
};

template <class T>
Chosen tucker(const CoreProblem<T>& p, bool tf32, Allocator& memory, const Device& device) {
  ChainArgs<T> args{};
  args.y.taps = int(p.kh), args.x.taps = int(p.kw), args.ranks = int(p.outer_ranks);
  args.first = aligned_taps(p.inner, p.inner_ranks, p.x.channels, 1, memory, device);
  args.middle = aligned_taps(p.core, p.outer_ranks, p.inner_ranks, p.kh * p.kw, memory, device);
  args.last = aligned_taps(p.outer, p.y.channels, p.outer_ranks, 1, memory, device);
  args.out = finish(p.y, p.residual, p.bias, p.activation);
  return run_chain<Core>(args, p.x, p.y, p.geometry, tf32, memory, device);
}

}  // namespace rdk::gpu
