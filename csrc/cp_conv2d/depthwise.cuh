// CP convolution on CUDA: T = two depthwise lines over the product of x with the inner factor, a block of ranks at a
// time in fp32, so that any number of ranks passes through one buffer.
#pragma once

#include "common/chain_launch.cuh"

namespace rdk::gpu {

template <class C>
class Depthwise {
 public:
  using T = typename C::T;

  static constexpr int rows(const ChainArgs<T>& args) { return args.y.tile * args.x.tile; }
  static constexpr int64_t bytes(const ChainArgs<T>& args) {
    const int64_t taps = args.y.taps + args.x.taps;
    return (int64_t(args.y.slots) * args.x.slots * kStride + taps * kRankBlock) * sizeof(float);
  }
  static double fill_work(const ChainArgs<T>& args) {
    const double lines = args.y.tile * (double(args.x.slots) * args.y.taps + args.x.tile * args.x.taps);
    return args.ranks * (double((args.y.slots * args.x.slots + 63) / 64 * 64) * args.in.channels + kLine * lines);
  }
  RDK_HOST_DEVICE static int last_taps(const ChainArgs<T>&) { return 1; }

  RDK_DEVICE Depthwise(const ChainArgs<T>& args, unsigned char* shared, T* ring, int64_t image, Spot tile)
      : args_(args),
        halo_(reinterpret_cast<float*>(shared)),
        taps_(halo_ + args.y.slots * args.x.slots * kStride),
        ring_(ring),
        image_(image),
        tile_(tile) {}

  RDK_DEVICE int shift(int m, int) const { return m; }

  RDK_DEVICE void fill(const RankMap<C>& map, int rank0, int ranks) const {
    const int across = args_.x.slots;
    for (int block = 0; block < ranks; block += kRankBlock) {
      first_product<C>(
          args_, ring_, image_, tile_, args_.y.slots * across, rank0 + block, 1,
          [&](int r) { return Spot{r / across, r % across}; },
          [&](int r, int c, float v, auto... next) {
            float* const to = halo_ + r * kStride + c;
            if constexpr (sizeof...(next)) {
              store8(to, make_uint2(__float_as_uint(v), __float_as_uint(next)...));
            } else {
              *to = v;
            }
          });
      load_taps(rank0 + block);
      __syncthreads();
      down();
      __syncthreads();
      over(map, block);
    }
  }

 private:
  static constexpr int kStride = kRankBlock + 8;  // floats; eight: two rows of a warp's pairs meet different banks
  static constexpr int kQuads = kRankBlock / 4, kAtOnce = kThreads / kQuads;
  static constexpr double kLine = 20;  // multiply-adds of tensor cores in the time of one of a depthwise line

  const ChainArgs<T>& args_;
  float *const halo_, *const taps_;  // [slots, kStride], [kh + kw, kRankBlock]
  T* const ring_;
  const int64_t image_;
  const Spot tile_;

  RDK_DEVICE void load_taps(int rank0) const {
    const int kh = args_.y.taps, kw = args_.x.taps;
    for (int n = threadIdx.x; n < (kh + kw) * kRankBlock; n += kThreads) {
      const int tap = n / kRankBlock, rank = rank0 + n % kRankBlock;
      const T* const from = tap < kh ? args_.vertical + rank * kh + tap : args_.horizontal + rank * kw + tap - kh;
      taps_[n] = rank < args_.ranks ? to_float(*from) : 0.0f;
    }
  }

  RDK_DEVICE static float4 line(const float* from, int step, const float* taps, int count) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int tap = 0; tap < count; ++tap) {
      const float4 v = floats(load16(from + tap * step)), w = floats(load16(taps + tap * kRankBlock));
      sum = make_float4(fmaf(v.x, w.x, sum.x), fmaf(v.y, w.y, sum.y), fmaf(v.z, w.z, sum.z), fmaf(v.w, w.w, sum.w));
    }
    return sum;
  }

  // In place: row p's result lies where row p was, which no later row reads.
  RDK_DEVICE void down() const {
    const int c = threadIdx.x % kQuads * 4, row = args_.x.slots * kStride;
    for (int column = threadIdx.x / kQuads; column < args_.x.slots; column += kAtOnce) {
      float* const at = halo_ + column * kStride + c;
      for (int p = 0; p < args_.y.tile; ++p) {
        const float4 sum = line(at + p * args_.y.stride * row, args_.y.dilation * row, taps_ + c, args_.y.taps);
        store16(at + p * row, words(sum));
      }
    }
  }

  RDK_DEVICE void over(const RankMap<C>& map, int block) const {
    const int c = threadIdx.x % kQuads * 4;
    const float* const taps = taps_ + args_.y.taps * kRankBlock + c;
    for (int m = threadIdx.x / kQuads; m < map.rows; m += kAtOnce) {
      const int slot = m / args_.x.tile * args_.x.slots + m % args_.x.tile * args_.x.stride;
      const float4 sum = line(halo_ + slot * kStride + c, args_.x.dilation * kStride, taps, args_.x.taps);
      map.put(m, block + c, sum.x, sum.y);
      map.put(m, block + c + 2, sum.z, sum.w);
    }
  }
};

// y = act(conv(x, W) + bias + residual), W[o, c, i, j] = sum_r outer[o, r] inner[r, c] vertical[r, i] horizontal[r, j].
template <class T>
struct DepthwiseProblem {
  Maps<const T> x;
  Maps<T> y;
  const T *inner, *vertical, *horizontal, *outer;
  int64_t ranks, kh, kw;
  Map4<const T> residual;
  const T* bias;
  Activation activation;
  Geometry geometry;
};

template <class T>
Chosen cp(const DepthwiseProblem<T>& p, bool tf32, Allocator& memory, const Device& device) {
  ChainArgs<T> args{};
  args.y.taps = int(p.kh), args.x.taps = int(p.kw), args.ranks = int(p.ranks);
  args.first = aligned_taps(p.inner, p.ranks, p.x.channels, 1, memory, device);
  args.last = aligned_taps(p.outer, p.y.channels, p.ranks, 1, memory, device);
  args.vertical = p.vertical, args.horizontal = p.horizontal;
  args.out = finish(p.y, p.residual, p.bias, p.activation);
  return run_chain<Depthwise>(args, p.x, p.y, p.geometry, tf32, memory, device);
}

}  // namespace rdk::gpu
