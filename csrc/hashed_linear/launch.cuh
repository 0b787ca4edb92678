// From a problem to launches, without torch: which kernel, which blocks, how much memory. Everything that orders a sum
// is a function of the shape alone.
#pragma once

#include "common/launch.cuh"
#include "hashed_linear/bank_grad.cuh"
#include "hashed_linear/few_rows.cuh"

namespace rdk::gpu {

constexpr int kBusy = 256;  // CTAs that keep a large GPU busy

// Granules (p0 .. p0 + down - 1, q0 .. q0 + across - 1) of V.
struct Region {
  int p0, q0, down, across;
};

// Where launches get memory and sorted keys; the caller owns both.
struct Workspace : Allocator {
  // A stable sort: sorted keys, and where each came from.
  virtual void sort(const int* keys, int count, const int** sorted, const int64_t** from) = 0;
  // members_of(map, where, *this, device), or a list kept from an earlier call.
  virtual Members members(const Map& map, const Region& where, const Device& device) = 0;

 protected:
  ~Workspace() = default;
};

// A matrix as it comes.
template <class T>
struct Strided {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;
};

enum class Path : int64_t { none, few_rows, many_rows, bank_grad };

// `x` itself where asynchronous copies can read it, else an aligned copy.
template <class T>
Rows<T> aligned_rows(const Strided<T>& x, bool ones, Workspace& memory, const Device& device) {
  constexpr int kValues = 16 / sizeof(T);
  const bool direct =
      !ones && x.col_stride == 1 && x.row_stride % kValues == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  if (direct || x.rows == 0 || x.cols + ones == 0) return {x.data, int(x.rows), int(x.cols + ones), int(x.row_stride)};
  const int64_t stride = (x.cols + ones + kValues - 1) / kValues * kValues;
  T* const to = static_cast<T*>(memory.take(x.rows * stride * sizeof(T)));
  RDK_LAUNCH((pack_rows<T>), dim3(blocks_of(x.rows * (x.cols + ones), 256)), dim3(256), 0, device.stream, x.data,
             x.row_stride, x.col_stride, int(x.rows), int(x.cols), ones, to, stride);
  check_launch("pack_rows");
  return {to, int(x.rows), int(x.cols + ones), int(stride)};
}

// fn(std::integral_constant<Granule, ...>) for the map's granule.
template <class Fn>
void with_granule(const Map& map, const Fn& fn) {
  if (map.element()) return fn(std::integral_constant<Granule, Granule::element>{});
  if (map.go_shift == 0 && map.gi_shift == 4) return fn(std::integral_constant<Granule, Granule::chunk>{});
  if (map.go_shift == 5 && map.gi_shift == 5) return fn(std::integral_constant<Granule, Granule::tile>{});
  return fn(std::integral_constant<Granule, Granule::any>{});
}

// How many ordered parts a product's depth is cut into so that `ctas` of them are enough, each of at least `least`
// steps.
inline int parts_of(int64_t ctas, int64_t steps, int64_t least) {
  return int(std::clamp<int64_t>(std::min(kBusy / std::max<int64_t>(ctas, 1), steps / least), 1, 16));
}

template <class T>
void finish_parts(const float* partial, int parts, int64_t size, const T* bias, int cols, float scale, T* y,
                  const Device& device) {
  RDK_LAUNCH((combine<T>), dim3(blocks_of(size, 256)), dim3(256), 0, device.stream, partial, parts, size, cols, bias,
             scale, y);
  check_launch("combine");
}

template <class T>
void finish_parts(const Output<T>& out, int parts, const Device& device) {
  finish_parts(out.partial, parts, int64_t(out.rows) * out.cols, out.bias, out.cols, out.scale, out.y, device);
}

// A bank's gradient: scale times the sums.
template <class T>
struct BankOutput {
  T* values;
  int64_t size;
  float scale;

  void finish(const float* sums, int parts, const Device& device) const {
    finish_parts<T>(sums, parts, size, nullptr, 1, scale, values, device);
  }
};

template <class T>
void take_parts(Output<T>& out, int parts, Workspace& memory) {
  out.partial =
      parts > 1 ? static_cast<float*>(memory.take(int64_t(parts) * out.rows * out.cols * sizeof(float))) : nullptr;
}

template <class T, class Pass, Granule kGranule, bool kShared>
void launch_few_rows(const FewRowsArgs<T>& args, int parts, const Device& device) {
  constexpr int kCols = Pass::kTransposed ? kInputGradCols : kForwardCols;
  const int bytes = kFewRows<T> * (kCols + 4) * int(sizeof(float)) + (kShared ? int(args.bank_bytes) : 0);
  const auto kernel = Pass::kTransposed ? few_rows_grad<T, kGranule, kShared> : few_rows<T, kGranule, kShared>;
  opt_in(kernel, bytes, device);
  const dim3 grid(blocks_of(args.out.cols, kCols), parts);
  if constexpr (Pass::kTransposed) {
    RDK_LAUNCH((few_rows_grad<T, kGranule, kShared>), grid, dim3(kFewThreads), bytes, device.stream, args);
  } else {
    RDK_LAUNCH((few_rows<T, kGranule, kShared>), grid, dim3(kFewThreads), bytes, device.stream, args);
  }
  check_launch("few_rows");
}

template <class T, class Pass>
void few_rows_product(FewRowsArgs<T> args, Workspace& memory, const Device& device) {
  constexpr int kCols = Pass::kTransposed ? kInputGradCols : kForwardCols, kStep = Pass::kTransposed ? 16 : 64;
  const int ctas = blocks_of(args.out.cols, kCols),
            parts = parts_of(ctas, (args.x.cols + kStep - 1) / kStep, 2 * kFewWarps);
  // a copy of the bank in every CTA pays where each then reads it several times
  const int64_t reads = int64_t(args.x.cols) * kCols * sizeof(T) / parts;
  const bool shared = args.bank_bytes % 16 == 0 && args.bank_bytes <= 64 * 1024 &&
                      args.bank_bytes + kFewRows<T> * (kCols + 4) * 4 <= int64_t(device.shared_limit) &&
                      reads >= 4 * args.bank_bytes;
  take_parts(args.out, parts, memory);
  with_granule(args.map, [&](auto granule) {
    if (shared) {
      launch_few_rows<T, Pass, granule(), true>(args, parts, device);
    } else {
      launch_few_rows<T, Pass, granule(), false>(args, parts, device);
    }
  });
  if (parts > 1) finish_parts(args.out, parts, device);
}

template <class Block, class Pass>
void launch_many_rows(ManyRowsArgs<typename Block::Value> args, Workspace& memory, const Device& device) {
  using Tiles = ManyRowsTiles<Block, Pass>;
  const int64_t ctas = int64_t(blocks_of(args.x.rows, Block::kM)) * blocks_of(args.out.cols, Block::kN);
  const int64_t steps = (args.x.cols + Block::kK - 1) / Block::kK;
  int parts = parts_of(ctas, steps, 4);
  args.span = int((steps + parts - 1) / parts) * Block::kK;
  parts = std::max(blocks_of(args.x.cols, std::max(args.span, 1)), 1);
  take_parts(args.out, parts, memory);
  with_granule(args.map, [&](auto granule) {
    opt_in(many_rows<Block, Pass, granule()>, Tiles::kBytes, device);
    RDK_LAUNCH((many_rows<Block, Pass, granule()>), dim3(blocks_of(ctas, 1), parts), dim3(kThreads), Tiles::kBytes,
               device.stream, args);
  });
  check_launch("many_rows");
  if (parts > 1) finish_parts(args.out, parts, device);
}

template <class T, class Pass>
void many_rows_product(const ManyRowsArgs<T>& args, bool tf32, Workspace& memory, const Device& device) {
  if constexpr (sizeof(T) == 2) {
    if (args.x.rows <= 64) return launch_many_rows<Block<T, Math::tensor, 64, 64>, Pass>(args, memory, device);
    return launch_many_rows<Block<T, Math::tensor, 128, 128>, Pass>(args, memory, device);
  } else {
    if (tf32) return launch_many_rows<Block<T, Math::tf32, 64, 64>, Pass>(args, memory, device);
    return launch_many_rows<Block<T, Math::fma, 64, 64>, Pass>(args, memory, device);
  }
}

// y = scale * x V^T + bias, or dx = scale * dy V, for at least one row and column of it.
template <class T, class Pass>
Path product(const Strided<T>& x, const T* bank, int64_t bank_size, const Map& map, const Output<T>& out, bool tf32,
             Workspace& memory, const Device& device) {
  const Rows<T> rows = aligned_rows(x, false, memory, device);
  if (rows.rows <= kFewRows<T>) {
    few_rows_product<T, Pass>({rows, bank, int64_t(bank_size * sizeof(T)), map, out}, memory, device);
    return Path::few_rows;
  }
  many_rows_product<T, Pass>({rows, bank, map, out, 0}, tf32, memory, device);
  return Path::many_rows;
}

// A few slots with many members: these are cut into pieces, so that `blocks` of work become enough.
inline int pieces_of(int64_t blocks, int64_t granules, int64_t slots) {
  return int(std::clamp<int64_t>(std::min(kBusy / std::max<int64_t>(blocks, 1), granules / slots), 1, 64));
}

template <class T, Math kMath>
void owned_bank_grad(const Rows<T>& dy, const Rows<T>& x, const Map& map, const BankOutput<T>& out,
                     const Members& members, int64_t granules, Workspace& memory, const Device& device) {
  using Block = OwnerBlock<T, kMath>;
  const int64_t blocks = int64_t(map.slots) << (map.go_shift + map.gi_shift - 10);
  const int pieces = pieces_of(blocks, granules, map.slots);
  float* const parts = static_cast<float*>(memory.take(pieces * out.size * int64_t(sizeof(float))));
  opt_in(bank_owner<T, kMath>, Block::kBytes, device);
  RDK_LAUNCH((bank_owner<T, kMath>), dim3(blocks_of(blocks, 1), pieces), dim3(kThreads), Block::kBytes, device.stream,
             dy, x, members, map, pieces, parts);
  check_launch("bank_owner");
  out.finish(parts, pieces, device);
}

// dV panel by panel, at most kPanel values of it in memory at once: decided by the shape alone, for it orders the sums.
constexpr int64_t kPanel = int64_t(1) << 22;

inline Region first_panel(const Map& map, int down, int across) {
  const int64_t budget = std::max<int64_t>(kPanel >> (map.go_shift + map.gi_shift), 1);
  const int wide = int(std::min<int64_t>(across, budget));
  int64_t high = std::max<int64_t>(budget / wide, 1);
  const int64_t block = std::max(128 >> map.go_shift, 1);  // granules down in a block of the panel's product
  if (high > block) high = high / block * block;
  return {0, 0, int(std::min<int64_t>(down, high)), wide};
}

// Values in a row of a panel, a multiple of four.
inline int panel_width(const Map& map, int across) { return ((across << map.gi_shift) + 3) / 4 * 4; }

template <class T, class Block>
void panel_bank_grad(const Rows<T>& dy, const Rows<T>& x, const Map& map, const BankOutput<T>& out, int down,
                     int across, Workspace& memory, const Device& device) {
  const Region panel = first_panel(map, down, across);
  const int64_t values = (int64_t(panel.down) << map.go_shift) * panel_width(map, panel.across);
  float* const dv = static_cast<float*>(memory.take(values * sizeof(float)));
  const int quad = map.element() ? 1 : 4,
            pieces = pieces_of(blocks_of(out.size, 128 * quad), int64_t(panel.down) * panel.across, map.slots);
  float* const parts = static_cast<float*>(memory.take(pieces * out.size * int64_t(sizeof(float))));
  opt_in(bank_panel<Block>, Block::kBytes, device);
  bool more = false;
  for (int p0 = 0; p0 < down; p0 += panel.down) {
    for (int q0 = 0; q0 < across; q0 += panel.across) {
      const Region here{p0, q0, std::min(panel.down, down - p0), std::min(panel.across, across - q0)};
      const int height = here.down << map.go_shift, width = panel_width(map, here.across);
      const int64_t ctas = int64_t(blocks_of(height, Block::kM)) * blocks_of(width, Block::kN);
      RDK_LAUNCH((bank_panel<Block>), dim3(blocks_of(ctas, 1)), dim3(kThreads), Block::kBytes, device.stream, dy, x,
                 p0 << map.go_shift, q0 << map.gi_shift, height, width, dv);
      check_launch("bank_panel");
      const Members members = memory.members(map, here, device);
      if (map.element()) {
        RDK_LAUNCH((bank_gather<1>), dim3(blocks_of(out.size, 128), pieces), dim3(128), 0, device.stream, dv, width,
                   members, map, p0, q0, out.size, more, parts);
      } else {
        RDK_LAUNCH((bank_gather<4>), dim3(blocks_of(out.size, 512), pieces), dim3(128), 0, device.stream, dv, width,
                   members, map, p0, q0, out.size, more, parts);
      }
      check_launch("bank_gather");
      more = true;
    }
  }
  out.finish(parts, pieces, device);
}

// dbank = scale * the sums of each slot's members.
template <class T>
Path bank_grad(const Strided<T>& dy, const Strided<T>& x, bool ones, const Map& map, const BankOutput<T>& out,
               bool tf32, Workspace& memory, const Device& device) {
  if (dy.rows == 0 || dy.cols == 0 || x.cols + ones == 0) {
    out.finish(nullptr, 0, device);
    return Path::bank_grad;
  }
  const Rows<T> y = aligned_rows(dy, false, memory, device), v = aligned_rows(x, ones, memory, device);
  const int down = int(((y.cols - 1) >> map.go_shift) + 1), across = int(((v.cols - 1) >> map.gi_shift) + 1);
  if (map.go_shift >= 5 && map.gi_shift >= 5) {
    const int64_t granules = int64_t(down) * across;
    blocks_of(granules, 1);
    const Members members = memory.members(map, {0, 0, down, across}, device);
    if constexpr (sizeof(T) == 2) {
      owned_bank_grad<T, Math::tensor>(y, v, map, out, members, granules, memory, device);
    } else if (tf32) {
      owned_bank_grad<T, Math::tf32>(y, v, map, out, members, granules, memory, device);
    } else {
      owned_bank_grad<T, Math::fma>(y, v, map, out, members, granules, memory, device);
    }
  } else if constexpr (sizeof(T) == 2) {
    panel_bank_grad<T, PanelBlock<T, Math::tensor, 128, 128>>(y, v, map, out, down, across, memory, device);
  } else if (tf32) {
    panel_bank_grad<T, PanelBlock<T, Math::tf32, 64, 64>>(y, v, map, out, down, across, memory, device);
  } else {
    panel_bank_grad<T, PanelBlock<T, Math::fma, 64, 64>>(y, v, map, out, down, across, memory, device);
  }
  return Path::bank_grad;
}

}  // namespace rdk::gpu
