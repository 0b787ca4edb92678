// Every low-rank kernel on ragged problems against plain loops over the dense weight, and the parts that they share.
// One program serves the sanitizers (each buffer ends with its last element, so an access past it is seen) and
// emulators.
//
//     lowrank_check [--break=load|store|skip|value]    with a fault put in that a sanitizer or the comparison must find
//
// Prints per kernel the problems run and the worst error as a share of its bound; fails where one passes the bound.
#include <cstring>
#include <span>
#include <thread>

#include "common/core.h"
#include "cp_conv2d/fused.h"
#include "epilogue_check.h"
#include "lowrank_case.h"
#include "lowrank_linear/fused.h"
#include "monochromatic_conv2d/fused.h"
#include "separable_conv2d/fused.h"
#include "tally.h"
#include "tap_check.h"

namespace {

using namespace rdk;

template <class T>
T rounded(double x) {
  T t;
  convert(float(x), &t);
  return t;
}

enum Layout { nhwc, nchw, channels, columns };  // also: some channels of wider pixels, every second column of NCHW

// A tensor [n, c, h, w] in one of the layouts: NaN in the gaps, and nothing after the last element.
template <class T>
struct Stored {
  std::vector<T> data;
  Image<T> image;

  Stored(int64_t n, int64_t c, int64_t h, int64_t w, int layout, bool cut = false)
      : image{nullptr, n, c, h, w, 0, 1, 0, 0} {
    if (layout == nhwc || layout == channels) {
      image.w_stride = layout == nhwc ? c : c + 3;
      image.h_stride = w * image.w_stride + (layout == nhwc ? 0 : 5);
      image.n_stride = h * image.h_stride;
    } else {
      image.w_stride = layout == nchw ? 1 : 2;
      image.h_stride = layout == nchw ? w : 2 * w + 1;
      image.c_stride = h * image.h_stride;
      image.n_stride = c * image.c_stride;
    }
    data.assign(index(n * c * h * w - 1) + !cut, rounded<T>(NAN));
    image.data = data.data();
  }
  // The place of element `flat` of [n][c][h][w].
  size_t index(int64_t flat) const {
    const int64_t w = flat % image.w, h = flat / image.w % image.h, c = flat / image.w / image.h % image.c;
    const int64_t n = flat / image.w / image.h / image.c;
    return size_t(n * image.n_stride + c * image.c_stride + h * image.h_stride + w * image.w_stride);
  }
  void fill(const std::vector<double>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (index(int64_t(i)) < data.size()) data[index(int64_t(i))] = rounded<T>(values[i]);
    }
  }
};

// Which of `size` rows (or columns) any output reads.
std::vector<bool> read_by(int64_t size, int64_t taps, int64_t stride, int64_t before, int64_t dilation, int64_t out) {
  std::vector<bool> is(static_cast<size_t>(size));
  for (int64_t y = 0; y < out; ++y) {
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t at = y * stride - before + k * dilation;
      if (at >= 0 && at < size) is[size_t(at)] = true;
    }
  }
  return is;
}

class Check {
 public:
  Check(const std::string& kernel, const Conv& p, const Chain& made, Draw& draw)
      : kernel_(kernel), p_(p), chain_(made), oh_(p.out_h()), ow_(p.out_w()) {
    chain_.packed = Floats(made.packed.begin(), made.packed.end());  // of its size exactly
    x_ = draw.values(p.n * p.c * p.h * p.w);
    bias_ = draw.values(p.o), residual_ = draw.values(p.n * p.o * oh_ * ow_);
    y_ = convolve(chain_.weight, x_, p.n, p.h, p.w, oh_, ow_);
    for (size_t k = 0; k < chain_.maps.size(); ++k) {  // the first may be of the input's rows, the second of the output
      const int64_t h = k == 0 && kernel != "separable" ? p.h : oh_, w = k == 0 ? p.w : ow_;
      maps_.push_back({convolve(chain_.maps[k], x_, p.n, p.h, p.w, h, w), h, w, chain_.maps[k].o});
    }
    if (fault == "value") {
      for (float& v : chain_.packed) v = nudged(v);
    }
  }

  template <class T>
  void run() const {
    Stored<T> x(p_.n, p_.c, p_.h, p_.w, p_.x_as, fault == "load");
    x.fill(x_);
    Stored<T> residual(p_.n, p_.o, oh_, ow_, p_.y_as);
    residual.fill(residual_);
    std::vector<T> given;
    for (double v : bias_) given.push_back(rounded<T>(v));
    const int64_t* const order = chain_.outputs.empty() ? nullptr : chain_.outputs.data();
    const std::vector<float> bias = padded_bias<T>(p_.bias ? given.data() : nullptr, p_.o, order);
    std::vector<T> first;
    for (int cut = 0; cut < 4; ++cut) {
      Stored<T> y(p_.n, p_.o, oh_, ow_, p_.y_as, fault == "store");
      std::vector<std::vector<float>> kept;
      for (const Map& map : maps_) kept.emplace_back(map.exact.size(), NAN);
      const Output<T> out{y.image, bias.data(), p_.residual ? residual.image.data : nullptr, p_.act, order};
      const Image<const T> from{
          x.data.data(),   p_.n, p_.c, p_.h, p_.w, x.image.n_stride, x.image.c_stride, x.image.h_stride,
          x.image.w_stride};
      compute(from, out, kept, cut);
      ++tallies[kernel_].problems;
      compare(y);
      for (size_t k = 0; k < kept.size(); ++k) compare(maps_[k], kept[k], k == 0 && kernel_ != "separable");
      if (cut == 0) first = y.data;  // the same bits however it is cut
      tallies[kernel_].expect(!std::memcmp(first.data(), y.data.data(), first.size() * sizeof(T)));
    }
  }

 private:
  struct Map {
    std::vector<Exact> exact;
    int64_t h, w, ranks;
  };

  template <class T>
  void compute(const Image<const T>& x, const Output<T>& out, std::vector<std::vector<float>>& kept, int cut) const {
    const float* const packed = chain_.packed.data();
    const auto map = [&](size_t k) {
      return k < kept.size() ? Kept{kept[k].data(), maps_[k].ranks, maps_[k].h, maps_[k].w} : Kept{};
    };
    const auto whole = [&](int64_t floats) { tallies[kernel_].expect(floats == int64_t(chain_.packed.size())); };
    if (kernel_ == "separable") {
      whole(Separable<T>::packed_floats(p_.c, p_.o, p_.r1, p_.kh, p_.kw));
      tiled(Separable<T>{x, out, p_.g, p_.kh, p_.kw, {p_.r1}, packed, map(0)}, cut);
    } else if (kernel_ == "cp") {
      whole(CP<T>::packed_floats(p_.c, p_.o, p_.r1, p_.kh, p_.kw));
      tiled(CP<T>{x, out, p_.g, p_.kh, p_.kw, {p_.r1}, packed, map(0), map(1)}, cut);
    } else if (kernel_ == "tucker" || kernel_ == "bicluster") {
      const bool plain = kernel_ == "tucker";
      const Clusters clusters{plain ? 1 : p_.gi, plain ? 1 : p_.go, plain ? nullptr : chain_.inputs.data()};
      const TuckerChain<T> k{x, out, p_.g, p_.kh, p_.kw, {p_.r1}, {p_.r2}, clusters, packed, map(0), map(1)};
      whole(k.packed_floats());
      tiled(k, cut);
    } else if (kernel_ == "monochromatic") {
      const Monochromatic<T> k{x, out, p_.g, p_.kh, p_.kw, p_.r1, chain_.counts.data(), packed};
      whole(k.packed_floats());
      tiled(k, cut);
    } else {
      const LowRank<T> k{x.data, p_.w, p_.c, x.w_stride, x.c_stride, out, p_.r1, packed, kept[0].data()};
      kernel_ == "few rows" ? few_rows(k, cut == 0 ? 1 : 1 << (cut - 1)) : many_rows(k, cut);
    }
  }

  // The kernel's own tiles for one thread and, in another order, for five; narrow ones; bands and columns by hand.
  template <class Kernel>
  void tiled(const Kernel& kernel, int cut) const {
    std::vector<Tile> tiles;
    if (cut == 3) {
      for (int64_t image = 0; image < p_.n; ++image) {
        for (int64_t y = 0, rows = 1; y < oh_; y += rows++) {
          for (int64_t x = 0, wide = 2; x < ow_; x += wide, wide = 2 * wide + 1) {
            tiles.push_back({image, y, std::min(y + rows, oh_), x, std::min(x + wide, ow_)});
          }
        }
      }
    } else {
      const Tiles all = cut == 2 ? Tiles(p_.n, oh_, ow_, 3, 0.1, 3) : kernel.tiles(cut == 0 ? 1 : 5);
      for (int64_t i = 0; i < all.count(); ++i) tiles.push_back(all[i]);
    }
    if (fault == "skip") tiles.pop_back();
    ordered(tiles, cut, [&](const Tile& tile) { kernel.run(tile); });
  }

  template <class T>
  void many_rows(const LowRank<T>& kernel, int cut) const {
    const int64_t count = cut == 2 ? kernel.rows : kernel.blocks(cut == 0 ? 1 : 2 * cut + 1);
    std::vector<int64_t> blocks(static_cast<size_t>(count - (fault == "skip")));
    std::iota(blocks.begin(), blocks.end(), 0);
    ordered(blocks, cut, [&](int64_t block) { kernel.run_block(block, count); });
  }

  // One after another: in one thread or, so that each has work memory of just its size, in one of its own.
  template <class Item, class Fn>
  static void ordered(std::vector<Item>& items, int cut, const Fn& fn) {
    if (cut > 0) std::shuffle(items.begin(), items.end(), std::mt19937(5));
    if (cut < 2)
      return std::thread([&] {
               for (const Item& item : items) fn(item);
             })
          .join();
    for (const Item& item : items) std::thread([&] { fn(item); }).join();
  }

  template <class T>
  static void few_rows(const LowRank<T>& kernel, int threads) {
    std::vector<float> inside(size_t(kernel.rows * kernel.rank_row()), NAN);
    std::vector<float> wide(kernel.direct() ? 0 : size_t(kernel.rows * kernel.wide_row()), NAN);
    const Segment a = kernel.whole(wide.data());
    Phases phases(kernel.rank_tasks(), kernel.output_tasks() - (fault == "skip"));
    std::vector<std::thread> region;
    for (int t = 0; t < threads; ++t) {
      region.emplace_back([&] {
        phases.work([&](int64_t i) { kernel.run_ranks(i, a, inside.data()); },
                    [&](int64_t i) { kernel.run_outputs(i, inside.data()); });
      });
    }
    for (std::thread& thread : region) thread.join();
    kernel.keep(0, kernel.rows, inside.data());
  }

  static double bound(const Exact& e) { return double(e.terms + 8) * 0x1p-24 * e.magnitude; }

  template <class T>
  void compare(const Stored<T>& y) const {
    constexpr double kHalfUlp = std::is_same_v<T, float> ? 0x1p-24 : std::is_same_v<T, Half> ? 0x1p-11 : 0x1p-8;
    Tally& tally = tallies[kernel_];
    std::vector<bool> element(y.data.size());
    for (size_t k = 0; k < y_.size(); ++k) {
      Exact e = y_[k];
      const double bias = p_.bias ? bias_[k / size_t(oh_ * ow_) % size_t(p_.o)] : 0;
      const double residual = p_.residual ? residual_[k] : 0;
      e.value += bias + residual, e.magnitude += std::fabs(bias) + std::fabs(residual);
      const double exact = activated(p_.act, e.value), smooth = p_.act >= Activation::gelu ? 0x1p-22 : 0;
      // no activation is steeper than 1.13
      const double allowed = 1.13 * bound(e) + smooth * std::fabs(e.value) + kHalfUlp * std::fabs(exact) + 0x1p-25;
      tally.error(std::fabs(double(to_float(y.data[y.index(int64_t(k))])) - exact) / allowed);
      element[y.index(int64_t(k))] = true;
    }
    for (size_t i = 0; i < y.data.size(); ++i) tally.expect(element[i] || std::isnan(to_float(y.data[i])));
  }

  // Ranks side by side; of input pixels that nothing reads (`sparse`), none needs to be there.
  void compare(const Map& map, const std::vector<float>& kept, bool sparse) const {
    const Geometry& g = p_.g;
    const std::vector<bool> rows = read_by(p_.h, p_.kh, g.stride_h, g.top, g.dilation_h, oh_);
    const std::vector<bool> columns = read_by(p_.w, p_.kw, g.stride_w, g.left, g.dilation_w, ow_);
    for (size_t k = 0; k < map.exact.size(); ++k) {  // [n][rank][h][w]
      const int64_t flat = int64_t(k), x = flat % map.w, y = flat / map.w % map.h;
      const int64_t rank = flat / map.w / map.h % map.ranks, image = flat / map.w / map.h / map.ranks;
      const float got = kept[size_t(((image * map.h + y) * map.w + x) * map.ranks + rank)];
      const bool read = (!sparse || rows[size_t(y)]) && (map.w != p_.w || columns[size_t(x)]);
      if (!read && std::isnan(got)) continue;
      const Exact& e = map.exact[k];
      tallies[kernel_].error(std::fabs(double(got) - e.value) / (bound(e) + 0x1p-24 * std::fabs(e.value) + 0x1p-126));
    }
  }

  std::string kernel_;
  Conv p_;
  Chain chain_;
  int64_t oh_, ow_;
  std::vector<double> x_, bias_, residual_;
  std::vector<Exact> y_;
  std::vector<Map> maps_;
};

Chain chain_of(const std::string& kernel, const Conv& p, Draw& draw) {
  if (kernel == "separable") return separable_chain(p, draw);
  if (kernel == "cp") return cp_chain(p, draw);
  if (kernel == "monochromatic") return monochromatic_chain(p, draw);
  if (kernel == "tucker") return tucker_chain(p, draw, 1, 1);
  if (kernel == "bicluster") return tucker_chain(p, draw, p.gi, p.go);
  return linear_chain(p, draw);
}

void check(const std::string& kernel, const Conv& p) {
  Draw draw(uint32_t(p.c * 31 + p.o * 7 + p.w));
  const Chain chain = chain_of(kernel, p, draw);
  const Check it(kernel, p, chain, draw);
  it.run<float>(), it.run<BFloat16>(), it.run<Half>();
}

constexpr Activation kNone = Activation::none, kRelu = Activation::relu, kGelu = Activation::gelu,
                     kSilu = Activation::silu;

// images, channels, height, width, outputs, kernel; strides, paddings, dilations; ranks; clusters; layouts of x and y;
// activation, bias, residual
const Conv kConvs[] = {
    {2, 18, 9, 11, 20, 3, 3, {1, 1, 1, 1, 1, 1, 1, 1}, 5, 7, 2, 4, nhwc, nhwc, kRelu, true, true},
    {1, 3, 13, 37, 33, 5, 5, {1, 1, 2, 2, 2, 2, 1, 1}, 4, 3, 3, 3, nhwc, nchw, kGelu, true, true},
    {1, 34, 7, 5, 17, 1, 7, {1, 2, 0, 0, 3, 3, 1, 1}, 37, 18, 2, 1, nchw, nchw, kSilu, true, false},
    {2, 16, 6, 1, 16, 3, 3, {1, 1, 1, 1, 1, 1, 1, 1}, 16, 16, 4, 4, channels, channels, kNone, false, true},
    {1, 5, 3, 4, 6, 5, 5, {1, 1, 4, 4, 4, 4, 1, 1}, 3, 3, 5, 2, columns, columns, kRelu, true, true},
    {1, 33, 8, 21, 31, 3, 2, {2, 3, 1, 0, 2, 1, 2, 1}, 33, 35, 3, 1, nchw, nhwc, kGelu, true, false},
    {1, 12, 5, 6, 9, 2, 3, {1, 1, 7, 9, 8, 10, 1, 1}, 20, 1, 4, 3, nhwc, nchw, kNone, false, false},
    {1, 8, 14, 40, 48, 3, 3, {1, 1, 1, 1, 1, 1, 1, 1}, 32, 32, 2, 3, nhwc, nhwc, kNone, true, true},
    {3, 20, 10, 9, 21, 4, 4, {5, 1, 2, 1, 0, 3, 1, 2}, 17, 33, 5, 7, channels, nchw, kSilu, false, true},
    {1, 1, 1, 1, 1, 1, 1, {1, 1, 0, 0, 0, 0, 1, 1}, 1, 1, 1, 1, nhwc, nhwc, kNone, false, false},
    {1, 20, 8, 17, 25, 7, 7, {1, 1, 3, 3, 3, 3, 1, 1}, 6, 9, 4, 5, nchw, nhwc, kRelu, true, false},
    {1, 4, 12, 12, 5, 11, 11, {4, 4, 2, 2, 2, 2, 1, 1}, 3, 4, 2, 5, columns, channels, kGelu, true, true},
    {1, 9, 8, 9, 13, 3, 3, {1, 1, 3, 3, 3, 3, 3, 3}, 18, 20, 3, 1, nhwc, nhwc, kSilu, true, true},
    {1, 530, 3, 4, 18, 3, 3, {1, 1, 1, 1, 1, 1, 1, 1}, 33, 12, 1, 2, nhwc, nhwc, kNone, false, false},
};

// A linear layer is a convolution of one line of pixels.
Conv linear(int64_t rows, int64_t in, int64_t ranks, int64_t out, int x_as, Activation act, bool bias, bool residual) {
  return {1, in, 1, rows, out, 1, 1, kPoints, ranks, 1, 1, 1, x_as, nhwc, act, bias, residual};
}
const Conv kLinears[] = {
    linear(1, 1, 1, 1, nhwc, kNone, false, false),       linear(1, 1500, 33, 300, nhwc, kRelu, true, true),
    linear(2, 131, 5, 20, channels, kGelu, true, true),  linear(3, 1024, 40, 130, nhwc, kSilu, true, false),
    linear(5, 17, 100, 16, nchw, kNone, false, true),    linear(7, 530, 16, 129, nhwc, kRelu, false, false),
    linear(8, 64, 64, 257, nhwc, kNone, true, true),     linear(13, 45, 17, 31, nchw, kGelu, true, true),
    linear(15, 600, 3, 47, columns, kSilu, true, true),  linear(24, 33, 48, 19, nhwc, kNone, true, true),
    linear(25, 513, 20, 40, nhwc, kNone, true, true),    linear(61, 1030, 35, 33, nchw, kRelu, true, true),
    linear(300, 20, 7, 18, channels, kGelu, true, true),
};

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) fault = std::string(argv[i]).substr(std::string("--break=").size());
  if (fault.empty() || fault == "value") check_parts();
  const size_t most = fault.empty() ? SIZE_MAX : 4;  // a fault is found soon or never
  for (const Conv& p : std::span(kConvs).first(std::min(most, std::size(kConvs)))) {
    for (const char* kernel : {"separable", "cp", "tucker", "bicluster", "monochromatic"}) check(kernel, p);
  }
  for (const Conv& p : std::span(kLinears).first(std::min(most, std::size(kLinears)))) {
    if (p.w <= kFewRankRows) check("few rows", p);
    check("many rows", p);
  }
  check_tap_grads(most);
  return report(kLanes) ? 1 : 0;
}
