// What the host chooses for low-rank chains of bf16, without a GPU: a problem per line in, its launch out.
//
//   in:  room  images channels height width  ranks-of-the-first-stage ranks outputs  kh kw  height width of y
//        stride padding  bytes of shared memory
//   out: tile_h tile_w slots_h slots_w rows segment columns  CTAs  bytes
#include <cstdio>

#include "cp_conv2d/depthwise.cuh"
#include "tucker_conv2d/core.cuh"

namespace rdk::gpu {

template <template <class> class Room>
void show(int64_t n, int c, int64_t h, int64_t w, int first, int ranks, int out, int kh, int kw, int y_h, int y_w,
          int stride, int padding, size_t limit) {
  using C = Chain<BFloat16, Math::tensor>;
  ChainArgs<BFloat16> args{};
  args.in = {nullptr, h * w * c, w * c, c, c};
  args.first.rows.rows = first, args.ranks = ranks, args.channels = out;
  args.y.taps = kh, args.x.taps = kw;
  int bytes = 0;
  const Geometry geometry{stride, stride, padding, padding, 1, 1};
  const dim3 grid = plan<C, Room<C>>(args, {{}, n, c, h, w}, y_h, y_w, geometry, {limit, nullptr}, &bytes);
  std::printf("%d %d %d %d %d %d %d %lld %d\n", args.y.tile, args.x.tile, args.y.slots, args.x.slots, args.rows,
              args.segment, args.columns, static_cast<long long>(grid.x) * grid.y, bytes);
}

}  // namespace rdk::gpu

int main() {
  using namespace rdk::gpu;
  char room[16];
  long long n, h, w, limit;
  int c, first, ranks, out, kh, kw, y_h, y_w, stride, padding;
  while (std::scanf("%15s %lld %d %lld %lld %d %d %d %d %d %d %d %d %d %lld", room, &n, &c, &h, &w, &first, &ranks, &out,
                    &kh, &kw, &y_h, &y_w, &stride, &padding, &limit) == 15) {
    const auto with = [&](auto call) { call(n, c, h, w, first, ranks, out, kh, kw, y_h, y_w, stride, padding, limit); };
    if (room[0] == 'L') with(show<Lines>);
    if (room[0] == 'D') with(show<Depthwise>);
    if (room[0] == 'C') with(show<Core>);
  }
}
