// Chains of small products on CUDA: a CTA takes a tile of 64 output pixels and all of the chain. Its rank map T stays
// in shared memory, the sums of the last product in registers until the epilogue stores them, and nothing passes
// through global memory between the stages.
//
//   for each block of output channels, and for each segment of the ranks:
//     T = the room's stages on the tile and its halo     (once, where all ranks fit into one segment)
//     y += T shifted * last factor, over taps and ranks
//
// Pixels of x lie with their channels side by side; what a tile reads outside x is zero by the length of its copies, so
// the products know no edges. T and what a room keeps between two products are rounded to x's own type, as torch's
// chain of convolutions rounds every map (in fp16 what exceeds 65504 is infinite there). On the contract's cases that
// takes a sixth of what the accuracy rule grants; pairs of high and low parts would double the last product and T.
#pragma once

#include "common/block_product.cuh"

namespace rdk::gpu {

constexpr int kTilePixels = 64, kRankBlock = 64;

// One dimension of the tiles. Of the positions that a tile reads, `slots` of them `step` apart are kept, those that a
// stride and a dilation reach: output p takes slot p * stride + tap * dilation.
struct Axis {
  int tile, tiles, out, in;
  int advance, before;  // in x: from tile to tile, padding
  int slots, step;
  int stride, dilation;  // in slots
  int taps;

  RDK_HOST_DEVICE int origin(int index) const { return index * advance - before; }
};

// x, channels side by side.
template <class T>
struct Pixels {
  const T* data;
  int64_t image, row;  // strides
  int pixel;
  int channels;
};

// A factor as [taps] matrices, one every `tap` values.
template <class T>
struct Taps {
  Rows<T> rows;
  int64_t tap;

  RDK_DEVICE Rows<T> operator[](int n) const { return {rows.data + n * tap, rows.rows, rows.cols, rows.stride}; }
};

enum class Activation { none, relu, gelu, silu };

template <class T>
struct Map4 {
  T* data;
  int64_t image, channel, row, pixel;  // strides
};

// y = activation(sums + bias + residual), any strides.
template <class T>
struct Finish {
  Map4<T> y;
  Map4<const T> residual;  // data may be null
  const T* bias;           // or null
  Activation activation;
  bool last, wide, wide_residual;  // y's channels side by side; four at once may be stored, of the residual loaded

  RDK_DEVICE static float activate(Activation kind, float v) {
    if (kind == Activation::relu) return v < 0.0f ? 0.0f : v;  // a NaN stays
    if (kind == Activation::gelu) return 0.5f * v * (1.0f + erff(v * 0.707106781186547524f));
    if (kind == Activation::silu) return v / (1.0f + expf(-v));
    return v;
  }

  RDK_DEVICE static void load4(float (&to)[4], const T* from) {
    if constexpr (sizeof(T) == 4) {
      const float4 v = floats(load16(from));
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
      const uint2 packed = load8(from);
      T values[4];
      memcpy(static_cast<void*>(values), &packed, 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = to_float(values[i]);
    }
  }
  RDK_DEVICE static void store4(T* to, const float (&v)[4]) {
    if constexpr (sizeof(T) == 4) {
      store16(to, words(make_float4(v[0], v[1], v[2], v[3])));
    } else {
      T values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = from_float<T>(v[i]);
      uint2 packed;
      memcpy(&packed, values, 8);
      store8(to, packed);
    }
  }

  // Channels c .. c + n - 1 of a pixel.
  RDK_DEVICE void put(int image, int row, int pixel, int c, int n, float4 sums) const {
    float v[4] = {sums.x, sums.y, sums.z, sums.w};
    if (bias) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += i < n ? to_float(bias[c + i]) : 0.0f;
    }
    if (residual.data) {
      const T* from = residual.data + image * residual.image + row * residual.row + pixel * residual.pixel;
      float added[4] = {};
      if (wide_residual && n == 4) {
        load4(added, from + c);
      } else {
        for (int i = 0; i < n; ++i) added[i] = to_float(from[(c + i) * residual.channel]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += added[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = activate(activation, v[i]);
    T* const to = y.data + image * y.image + row * y.row + pixel * y.pixel;
    if (wide && n == 4) return store4(to + c, v);
    for (int i = 0; i < n; ++i) to[(c + i) * y.channel] = from_float<T>(v[i]);
  }
};

template <class T_, Math kMath_>
struct Chain {
  using T = T_;
  static constexpr Math kMath = kMath_;
  static constexpr int kOut = sizeof(T) == 2 ? 128 : 64;  // channels of a block of y
  static constexpr int kK = 128 / sizeof(T), kBlocks = kRankBlock / kK;
  using A = Tile<T, 64, kK>;
  using B = Tile<T, 64, kK>;
  using Wide = Tile<T, kOut, kK>;
  using Inner = WarpProduct<T, kMath, 32, 32, A, false, B, false>;
  using Last = WarpProduct<T, kMath, 32, kOut / 2, A, false, Wide, false>;
  static constexpr int kUnroll = kMath == Math::fma ? 1 : 4;  // more of its steps at once would spill
  static constexpr int kStage = 2 * A::kSize > Wide::kSize ? 2 * A::kSize : Wide::kSize;
  static constexpr int kRing = 2 * kStage * int(sizeof(T));
  static constexpr int kWork = kRing > drain_bytes<kTilePixels, kOut>() ? kRing
                                                                        : drain_bytes<kTilePixels, kOut>();  // bytes
};

template <class T>
struct ChainArgs {
  Axis y, x;
  Pixels<T> in;
  Taps<T> first, middle, last;     // [R][C], the room's, [O][R]
  const T *vertical, *horizontal;  // [R, taps] of a depthwise room
  Finish<T> out;
  int channels, ranks;
  int segment;  // ranks of T at once, a multiple of kRankBlock
  int rows;     // pixels of T
  int columns;  // blocks of y's channels of one CTA
  int extra;    // bytes of shared memory before the room's own
};

RDK_DEVICE int warp_row() { return warp_id() / 2 * 32; }
template <int kCols>
RDK_DEVICE int warp_col() {
  return warp_id() % 2 * (kCols / 2);
}

// A map of `rows` pixels in shared memory, tiles of kK ranks one after the other.
template <class C>
struct RankMap {
  using T = typename C::T;
  T* data;
  int rows;

  RDK_DEVICE const T* tile(int n) const { return data + n * rows * C::kK; }
  RDK_DEVICE T* at(int row, int rank) const {
    return data + rank / C::kK * rows * C::kK + C::A::value(row, rank % C::kK);
  }
  RDK_DEVICE void put(int row, int rank, float v) const { *at(row, rank) = from_float<T>(v); }
  RDK_DEVICE void put(int row, int rank, float v, float next) const {
    T both[2];
    both[0] = from_float<T>(v), both[1] = from_float<T>(next);
    T* const to = at(row, rank);
    if constexpr (sizeof(T) == 2) {
      uint32_t pair;
      memcpy(&pair, both, 4);
      *reinterpret_cast<uint32_t*>(to) = pair;
    } else {
      to[0] = both[0], to[1] = both[1];
    }
  }
};

// `steps` of copies and products through two stages of shared memory. The first step comes after a barrier, so that
// what was written before is there to be read; on return all threads have left the memory.
template <class Load, class Step>
RDK_DEVICE void stream(int steps, const Load& load, const Step& step) {
  load(0);
  cp_async_commit();
  for (int n = 0; n < steps; ++n) {
    cp_async_wait<0>();
    __syncthreads();
    if (n + 1 < steps) load((n + 1) % 2);
    cp_async_commit();
    step(n % 2, n);
  }
  cp_async_wait<0>();
  __syncthreads();
}

template <class C, class Product>
RDK_DEVICE void settle_sometimes(Product& product, int n) {
  if (kSettles<typename C::T> && (n + 1) % (kChain / C::kK) == 0) product.settle();
}

// sink(row, rank, value) or sink(row, rank, value, the next rank's) for every value of a product whose corner is `row`.
// Ranks past the last are zero, whatever infinities of x made of the factor's zeros.
template <class C, class Product, class Sink>
RDK_DEVICE void pour(Product& product, int row, int rows, int ranks, const Sink& sink) {
  const int r0 = row + warp_row(), c0 = warp_col<kRankBlock>();
  const auto inside = [&](int r, int c, float v, auto... next) {
    if (r0 + r < rows) sink(r0 + r, c0 + c, c0 + c < ranks ? v : 0.0f, (c0 + c + 1 < ranks ? next : 0.0f)...);
  };
  if constexpr (C::kMath == Math::fma) {
    product.each(inside);
  } else {
    product.pairs(inside);
  }
}

struct Spot {
  int y, x;
};

// The first product: `rows` pixels of x times ranks rank0 .. of the first factor, over its taps (down) and the
// channels. where(row) is a row's place in the tile, in slots.
template <class C, class Where, class Sink>
RDK_DEVICE void first_product(const ChainArgs<typename C::T>& args, typename C::T* ring, int64_t image, Spot tile,
                              int rows, int rank0, int taps, const Where& where, const Sink& sink) {
  using T = typename C::T;
  using A = typename C::A;
  constexpr int kAtOnce = kThreads / A::kChunks, kMine = A::kRows / kAtOnce;
  const int mine = threadIdx.x % A::kChunks * A::kValues;
  const int y0 = args.y.origin(tile.y), x0 = args.x.origin(tile.x);
  const int64_t base = image * args.in.image + y0 * args.in.row + int64_t(x0) * args.in.pixel;
  const int deep = (args.in.channels + C::kK - 1) / C::kK;
  for (int row0 = 0; row0 < rows; row0 += A::kRows) {
    int y[kMine], at[kMine];  // row of x, or one far outside; from the tile's origin
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int r = row0 + int(threadIdx.x) / A::kChunks + i * kAtOnce;
      const Spot spot = where(r < rows ? r : 0);
      const int x = x0 + spot.x * args.x.step;
      const bool inside = r < rows && unsigned(x) < unsigned(args.x.in);
      y[i] = inside ? y0 + spot.y * args.y.step : -(1 << 30);
      at[i] = int(spot.y * args.y.step * args.in.row + int64_t(spot.x * args.x.step) * args.in.pixel);
    }
    int tap = 0, k = 0;
    const auto load = [&](int stage) {
      T* const to = ring + stage * C::kStage;
      const int bytes = min(max((args.in.channels - k - mine) * int(sizeof(T)), 0), 16);
      const int down = tap * args.y.dilation * args.y.step;
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const bool inside = bytes > 0 && unsigned(y[i] + down) < unsigned(args.y.in);
        const T* const from = args.in.data + (inside ? base + at[i] + down * args.in.row + k + mine : 0);
        const int r = int(threadIdx.x) / A::kChunks + i * kAtOnce;
        cp_async16(to + A::chunk(r, threadIdx.x % A::kChunks), from, inside ? bytes : 0);
      }
      C::B::template load<true>(to + A::kSize, args.first[tap], rank0, k);
      k += C::kK;
      if (k >= args.in.channels) k = 0, ++tap;
    };
    typename C::Inner product(warp_row(), warp_col<kRankBlock>());
    stream(taps * deep, load, [&](int stage, int n) {
      const T* const from = ring + stage * C::kStage;
#pragma unroll(C::kUnroll)
      for (int d = 0; d < C::kK; d += C::Inner::kStep) product.step(from, from + A::kSize, d);
      settle_sometimes<C>(product, n);
    });
    pour<C>(product, row0, rows, args.first.rows.rows - rank0, sink);
  }
}

// product += map, its rows shifted tap by tap, times rows col0 .. of the factor's ranks rank0 .. rank0 + ranks.
// shift(pixel, tap) is the row of the map that a pixel takes.
template <class C, class B, class Product, class Shift>
RDK_DEVICE void tap_product(Product& product, typename C::T* ring, const RankMap<C>& map,
                            const Taps<typename C::T>& factor, int taps, int col0, int rank0, int ranks,
                            const Shift& shift) {
  const int deep = (ranks + C::kK - 1) / C::kK;
  int tap = 0, block = 0, done_tap = 0, done = 0;
  const auto load = [&](int stage) {
    B::template load<true>(ring + stage * C::kStage, factor[tap], col0, rank0 + block * C::kK);
    if (++block == deep) block = 0, ++tap;
  };
  int places[Product::kPlaces];
  stream(taps * deep, load, [&](int stage, int n) {
    if (done == 0) Product::place(places, [&](int r) { return shift(warp_row() + r, done_tap); });
    const typename C::T* const from = map.tile(done);
#pragma unroll(C::kUnroll)
    for (int d = 0; d < C::kK; d += Product::kStep) product.step_at(from, places, ring + stage * C::kStage, d);
    settle_sometimes<C>(product, n);
    if (++done == deep) done = 0, ++done_tap;
  });
}

// The sums of a block of y, through shared memory, to the epilogue.
template <class C>
RDK_DEVICE void store_tile(typename C::Last& product, const ChainArgs<typename C::T>& args, float* staged, int image,
                           Spot tile, int col0) {
  constexpr int kStride = C::kOut + 8, kQuads = C::kOut / 4;
  const int pixels = args.y.tile * args.x.tile;
  product.each([&](int r, int c, float v) { staged[(warp_row() + r) * kStride + warp_col<C::kOut>() + c] = v; });
  __syncthreads();
  for (int n = threadIdx.x; n < kTilePixels * kQuads; n += kThreads) {  // lanes along what lies side by side in y
    const int r = args.out.last ? n / kQuads : n % kTilePixels;
    const int c = (args.out.last ? n % kQuads : n / kTilePixels) * 4, left = args.channels - col0 - c;
    const int row = tile.y * args.y.tile + r / args.x.tile, pixel = tile.x * args.x.tile + r % args.x.tile;
    if (r >= pixels || row >= args.y.out || pixel >= args.x.out || left <= 0) continue;
    args.out.put(image, row, pixel, col0 + c, min(left, 4), floats(load16(staged + r * kStride + c)));
  }
}

// The kernel of a room: Room::fill makes T of ranks first .. first + count - 1, Room::shift says which row of T a pixel
// takes at a tap of the last product.
template <class C, class Room>
__global__ void __launch_bounds__(kThreads, kResident<C::kMath>) chain(ChainArgs<typename C::T> args) {
  using T = typename C::T;
  RDK_DYN_SMEM(unsigned char, shared);
  T* const ring = reinterpret_cast<T*>(shared);
  const RankMap<C> map{reinterpret_cast<T*>(shared + C::kWork), args.rows};
  const int across = args.x.tiles, down = args.y.tiles;
  const Spot tile{int(blockIdx.x) / across % down, int(blockIdx.x) % across};
  const int image = blockIdx.x / across / down, pixels = args.y.tile * args.x.tile;
  Room room(args, shared + args.extra, ring, image, tile);

  const int first = blockIdx.y * args.columns * C::kOut;
  const int end = min(first + args.columns * C::kOut, args.channels);
  for (int col0 = first; col0 < end; col0 += C::kOut) {
    typename C::Last product(warp_row(), warp_col<C::kOut>());
    for (int rank0 = 0; rank0 < args.ranks; rank0 += args.segment) {
      const int ranks = min(args.segment, args.ranks - rank0);
      if (col0 == first || args.segment < args.ranks) room.fill(map, rank0, ranks);
      tap_product<C, typename C::Wide>(product, ring, map, args.last, Room::last_taps(args), col0, rank0, ranks,
                                       [&](int m, int tap) { return room.shift(min(m, pixels - 1), tap); });
    }
    store_tile<C>(product, args, reinterpret_cast<float*>(shared), image, tile, col0);
    __syncthreads();
  }
}

// T = a kh x 1 product, the last one is 1 x kw.
template <class C>
struct Lines {
  using T = typename C::T;
  const ChainArgs<T>& args;
  T* const ring;
  const int64_t image;
  const Spot tile;

  RDK_DEVICE Lines(const ChainArgs<T>& args, unsigned char*, T* ring, int64_t image, Spot tile)
      : args(args), ring(ring), image(image), tile(tile) {}

  // For the plan: pixels of T, bytes of its own, multiply-adds of a fill.
  static constexpr int rows(const ChainArgs<T>& args) { return args.y.tile * args.x.slots; }
  static constexpr int64_t bytes(const ChainArgs<T>&) { return 0; }
  static double fill_work(const ChainArgs<T>& args) {
    return double((args.rows + 63) / 64 * 64) * args.ranks * args.in.channels * args.y.taps;
  }

  RDK_HOST_DEVICE static int last_taps(const ChainArgs<T>& args) { return args.x.taps; }
  RDK_DEVICE int shift(int m, int tap) const {
    return m / args.x.tile * args.x.slots + m % args.x.tile * args.x.stride + tap * args.x.dilation;
  }
  RDK_DEVICE void fill(const RankMap<C>& map, int rank0, int ranks) const {
    const auto where = [&](int r) { return Spot{r / args.x.slots * args.y.stride, r % args.x.slots}; };
    for (int block = 0; block < ranks; block += kRankBlock) {
      first_product<C>(args, ring, image, tile, map.rows, rank0 + block, args.y.taps, where,
                       [&](int r, int c, auto... v) { map.put(r, block + c, v...); });
    }
  }
};

}  // namespace rdk::gpu
