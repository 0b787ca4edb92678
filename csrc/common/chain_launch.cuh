// From a low-rank problem to the launch of its chain: aligned copies of what is not, the tile, the segments of the
// ranks.
#pragma once

#include <initializer_list>
#include <numeric>

#include "common/chain.cuh"
#include "common/launch.cuh"

namespace rdk::gpu {

// What was chosen: for tests.
struct Chosen {
  int tile_h, tile_w, segment, groups;
};

constexpr int kSms = 132;  // of the GPU that tiles are chosen for

// x or a result as it comes.
template <class T>
struct Maps {
  Map4<T> map;
  int64_t n, channels, h, w;
};

struct Geometry {
  int stride_h, stride_w, top, left, dilation_h, dilation_w;
};

inline int round_up(int64_t n, int64_t to) { return int((n + to - 1) / to * to); }

// Which positions a tile of `tile` outputs keeps: those that its stride and dilation reach, and no others between.
constexpr Axis axis(int tile, int in, int out, int taps, int stride, int dilation, int before) {
  const int step = tile == 1 && taps == 1 ? 1 : tile == 1 ? dilation : taps == 1 ? stride : std::gcd(stride, dilation);
  const int own = tile == 1 ? 0 : stride / step, further = taps == 1 ? 0 : dilation / step;
  const int slots = (tile - 1) * own + (taps - 1) * further + 1;
  return {tile, (out + tile - 1) / tile, out, in, tile * stride, before, slots, step, own, further, taps};
}

template <class T>
__global__ void __launch_bounds__(256)
    pack_pixels(Map4<const T> from, int channels, int64_t pixels, int h, int w, int width, T* to) {
  constexpr int kValues = 16 / sizeof(T);
  const int64_t n = int64_t(blockIdx.x) * 256 + threadIdx.x, at = n % pixels;
  const int c = int(n / pixels) * kValues;
  if (c >= channels) return;
  const T* const source = from.data + at / w / h * from.image + at / w % h * from.row + at % w * from.pixel;
  T values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = c + i < channels ? source[(c + i) * from.channel] : from_float<T>(0.0f);
  uint4 packed;
  memcpy(&packed, values, 16);
  store16(to + at * width + c, packed);
}

template <class T>
__global__ void __launch_bounds__(256) pack_taps(const T* from, int rows, int cols, int taps, int64_t row_stride,
                                                 int64_t col_stride, int64_t tap_stride, int width, T* to) {
  const int64_t n = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (n >= int64_t(rows) * cols * taps) return;
  const int64_t c = n % cols, r = n / cols % rows, tap = n / cols / rows;
  to[(tap * rows + r) * width + c] = from[r * row_stride + c * col_stride + tap * tap_stride];
}

// x where asynchronous copies can read its pixels, else a copy.
template <class T>
Pixels<T> aligned_pixels(const Maps<const T>& x, Allocator& memory, const Device& device) {
  constexpr int kValues = 16 / sizeof(T);
  const Map4<const T>& m = x.map;
  const bool direct = (m.channel == 1 || x.channels == 1) && m.image % kValues == 0 && m.row % kValues == 0 &&
                      m.pixel % kValues == 0 && m.pixel < int64_t(1) << 31 &&
                      reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  if (direct) return {m.data, m.image, m.row, int(m.pixel), int(x.channels)};
  const int width = round_up(x.channels, kValues);
  const int64_t pixels = x.n * x.h * x.w;
  T* const to = static_cast<T*>(memory.take(pixels * width * int64_t(sizeof(T))));
  RDK_LAUNCH((pack_pixels<T>), dim3(blocks_of(pixels * (width / kValues), 256)), dim3(256), 0, device.stream, m,
             int(x.channels), pixels, int(x.h), int(x.w), width, to);
  check_launch("pack_pixels");
  return {to, x.h * x.w * width, x.w * width, width, int(x.channels)};
}

// A contiguous factor [rows, cols, taps] as `taps` aligned matrices.
template <class T>
Taps<T> aligned_taps(const T* factor, int64_t rows, int64_t cols, int64_t taps, Allocator& memory,
                     const Device& device) {
  constexpr int kValues = 16 / sizeof(T);
  if (taps == 1 && cols % kValues == 0 && reinterpret_cast<uintptr_t>(factor) % 16 == 0) {
    return {{factor, int(rows), int(cols), int(cols)}, 0};
  }
  const int width = round_up(cols, kValues);
  T* const to = static_cast<T*>(memory.take(taps * rows * width * int64_t(sizeof(T))));
  RDK_LAUNCH((pack_taps<T>), dim3(blocks_of(rows * cols * taps, 256)), dim3(256), 0, device.stream, factor, int(rows),
             int(cols), int(taps), cols * taps, taps, int64_t(1), width, to);
  check_launch("pack_taps");
  return {{to, int(rows), int(cols), width}, rows * width};
}

// y, the residual (its data may be null) and what else the epilogue takes.
template <class T>
Finish<T> finish(const Maps<T>& y, const Map4<const T>& residual, const T* bias, Activation activation) {
  const auto wide = [](const auto& m) {
    return m.channel == 1 && (m.image | m.row | m.pixel) % 4 == 0 &&
           reinterpret_cast<uintptr_t>(m.data) % (4 * sizeof(T)) == 0;
  };
  return {y.map, residual, bias, activation, y.map.channel == 1, wide(y.map), wide(residual)};
}

// Sets the tile and the segment that promise the least work, and returns the bytes of shared memory and the CTAs across
// y's channels: as many as keep a GPU busy, for each makes T again.
template <class C, class Room>
dim3 plan(ChainArgs<typename C::T>& args, const Maps<const typename C::T>& x, int h, int w, const Geometry& g,
          const Device& device, int* bytes) {
  using T = typename C::T;
  const int blocks = (args.channels + C::kOut - 1) / C::kOut, kh = args.y.taps, kw = args.x.taps;
  double least = 0;
  dim3 grid(0);
  const auto attempt = [&](int tile_h, int tile_w) {
    ChainArgs<T> a = args;
    a.y = axis(tile_h, int(x.h), h, kh, g.stride_h, g.dilation_h, g.top);
    a.x = axis(tile_w, int(x.w), w, kw, g.stride_w, g.dilation_w, g.left);
    a.rows = Room::rows(a);
    if (a.y.slots * int64_t(a.y.step) * a.in.row + a.x.slots * int64_t(a.x.step) * a.in.pixel >= int64_t(1) << 31) {
      return false;  // offsets within a tile are 32 bits wide
    }
    const int64_t own = Room::bytes(a), per_block = int64_t(a.rows) * kRankBlock * sizeof(T);
    const int64_t fit = (int64_t(device.shared_limit) - C::kWork - own) / per_block;
    if (int64_t(device.shared_limit) < C::kWork + own + per_block) return false;
    a.segment = int(std::min<int64_t>(fit, (a.ranks + kRankBlock - 1) / kRankBlock)) * kRankBlock;
    const int64_t tiles = x.n * a.y.tiles * a.x.tiles;
    const int across = int(std::clamp<int64_t>(kSms / std::max<int64_t>(tiles, 1), 1, blocks));
    a.columns = (blocks + across - 1) / across;
    const int groups = (blocks + a.columns - 1) / a.columns;
    const double fills = a.segment < a.ranks ? a.columns : 1;
    const double work =
        Room::fill_work(a) * fills + double(kTilePixels) * a.columns * C::kOut * a.ranks * Room::last_taps(a);
    const double all = work * double(std::max<int64_t>(tiles * groups, kSms));
    if (grid.x == 0 || all < least) {
      a.extra = C::kWork + int(per_block * (a.segment / kRankBlock));
      *bytes = a.extra + int(own);
      grid = dim3(blocks_of(tiles, 1), groups), least = all, args = a;
    }
    return true;
  };
  for (const int wide : {w, 64, 32, 28, 16, 14, 8, 7, 4, 2, 1}) {
    if (wide > std::min(w, kTilePixels)) continue;
    int high = std::min(h, kTilePixels / wide);
    while (!attempt(high, wide) && high > 1) high /= 2;
  }
  if (grid.x == 0)
    throw std::runtime_error("rdkernels: this kernel's window is too large for this GPU's shared memory");
  return grid;
}

template <class C, class Room>
Chosen launch_chain(ChainArgs<typename C::T> args, const Maps<const typename C::T>& x, int h, int w, const Geometry& g,
                    const Device& device) {
  int bytes = 0;
  const dim3 grid = plan<C, Room>(args, x, h, w, g, device, &bytes);
  opt_in(chain<C, Room>, bytes, device);
  RDK_LAUNCH((chain<C, Room>), grid, dim3(kThreads), bytes, device.stream, args);
  check_launch("chain");
  return {args.y.tile, args.x.tile, args.segment, int(grid.y)};
}

// `args` without its axes and its plan; these have only their taps.
template <template <class> class Room, class T>
Chosen run_chain(ChainArgs<T> args, const Maps<const T>& x, const Maps<T>& y, const Geometry& g, bool tf32,
                 Allocator& memory, const Device& device) {
  args.in = aligned_pixels(x, memory, device);
  args.channels = int(y.channels);
  const int h = int(y.h), w = int(y.w);
  if constexpr (sizeof(T) == 2) {
    return launch_chain<Chain<T, Math::tensor>, Room<Chain<T, Math::tensor>>>(args, x, h, w, g, device);
  } else {
    if (tf32) return launch_chain<Chain<T, Math::tf32>, Room<Chain<T, Math::tf32>>>(args, x, h, w, g, device);
    return launch_chain<Chain<T, Math::fma>, Room<Chain<T, Math::fma>>>(args, x, h, w, g, device);
  }
}

// y = act(conv(conv(x, vertical), horizontal) + bias + residual): vertical [R, C, kh], horizontal [O, R, kw].
template <class T>
struct LinesProblem {
  Maps<const T> x;
  Maps<T> y;
  const T *vertical, *horizontal;
  int64_t ranks, kh, kw;
  Map4<const T> residual;
  const T* bias;
  Activation activation;
  Geometry geometry;
};

template <class T>
Chosen lines(const LinesProblem<T>& p, bool tf32, Allocator& memory, const Device& device) {
  ChainArgs<T> args{};
  args.y.taps = int(p.kh), args.x.taps = int(p.kw), args.ranks = int(p.ranks);
  args.first = aligned_taps(p.vertical, p.ranks, p.x.channels, p.kh, memory, device);
  args.last = aligned_taps(p.horizontal, p.y.channels, p.ranks, p.kw, memory, device);
  args.out = finish(p.y, p.residual, p.bias, p.activation);
  return run_chain<Lines>(args, p.x, p.y, p.geometry, tf32, memory, device);
}

}  // namespace rdk::gpu
