// What the lanes of a warp do together, once they have met (runtime.cpp).
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

#include "simt/runtime.h"

namespace simt {
namespace {

template <class Fn>
void each_lane(uint32_t mask, const Fn& fn) {
  for (; mask; mask &= mask - 1) fn(std::countr_zero(mask));
}

struct ShuffleArgs {
  uint64_t value, result;
  int source;
};
struct VoteArgs {
  uint32_t vote, result;
};
struct MatrixArgs {
  uint32_t* r;
  const void* row;
};
struct MmaArgs {
  float* d;
  const uint32_t *a, *b;
};

template <Shuffle>
void finish_shuffle(Meeting& m) {
  each_lane(m.mask, [&](int l) {
    ShuffleArgs& args = m.at<ShuffleArgs>(l);
    args.result = m.at<ShuffleArgs>(args.source).value;
  });
}

template <Reduce op>
uint32_t combine(uint32_t a, uint32_t b) {
  switch (op) {
    case Reduce::Add:
      return a + b;
    case Reduce::Min:
      return std::min(a, b);
    case Reduce::Max:
      return std::max(a, b);
    case Reduce::MinSigned:
      return uint32_t(std::min(int32_t(a), int32_t(b)));
    case Reduce::MaxSigned:
      return uint32_t(std::max(int32_t(a), int32_t(b)));
    case Reduce::And:
      return a & b;
    case Reduce::Or:
      return a | b;
    default:
      return a ^ b;
  }
}

template <Reduce op>
void finish_reduce(Meeting& m) {
  const int first = std::countr_zero(m.mask);
  uint32_t sum = m.at<VoteArgs>(first).vote;
  each_lane(m.mask & (m.mask - 1), [&](int l) { sum = combine<op>(sum, m.at<VoteArgs>(l).vote); });
  each_lane(m.mask, [&](int l) { m.at<VoteArgs>(l).result = sum; });
}

// PTX ISA, "Matrix load instruction: ldmatrix".
template <bool trans>
void finish_ldmatrix(Meeting& m) {
  const void* rows[32];
  uint16_t matrix[4][8][8];
  for (int l = 0; l < 32; ++l) {
    rows[l] = m.at<MatrixArgs>(l).row;
    std::memcpy(matrix[l / 8][l % 8], rows[l], 16);
  }
  trace::request(rows, m.mask, 16, trace::Op::MatrixRead, m.site);
  for (int l = 0; l < 32; ++l) {
    for (int q = 0; q < 4; ++q) {
      for (int e = 0; e < 2; ++e) {
        const int row = trans ? l % 4 * 2 + e : l / 4, column = trans ? l / 4 : l % 4 * 2 + e;
        uint32_t& r = m.at<MatrixArgs>(l).r[q];
        r = (e ? r : 0) | uint32_t(matrix[q][row][column]) << 16 * e;
        const char* at = static_cast<const char*>(rows[q * 8 + row]) + 2 * column;
        trace::race_only(at, 2, trace::Op::MatrixRead, m.warp * 32 + l, m.site);
      }
    }
  }
}

// Every half in fp32: NVIDIA's own conversion is slow on the host.
const float* half_values() {
  static const auto table = [] {
    auto made = std::make_unique<float[]>(1 << 16);
    for (uint32_t i = 0; i < 1 << 16; ++i) made[i] = __half2float(std::bit_cast<__half>(uint16_t(i)));
    return made;
  }();
  return table.get();
}

template <Element type>
double element(uint32_t word, int high) {
  const uint32_t bits16 = high ? word >> 16 : word & 0xffff;
  if constexpr (type == Element::Half) return half_values()[bits16];
  if constexpr (type == Element::BFloat16) return std::bit_cast<float>(bits16 << 16);
  return std::bit_cast<float>(word & 0xffffe000u);  // tf32: what the tensor cores see of it
}

// PTX ISA, "Matrix fragments for mma.m16n8k16" (.f16, .bf16) and "for mma.m16n8k8" (.tf32). Sums in double.
template <Element type>
void finish_mma(Meeting& m) {
  constexpr int K = type == Element::Tf32 ? 8 : 16;
  double a[16][K], b[K][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const MmaArgs& args = m.at<MmaArgs>(l);
    const int g = l / 4, t = l % 4;
    if constexpr (type == Element::Tf32) {
      for (int q = 0; q < 4; ++q) a[g + q % 2 * 8][t + q / 2 * 4] = element<type>(args.a[q], 0);
      for (int q = 0; q < 2; ++q) b[t + q * 4][g] = element<type>(args.b[q], 0);
    } else {
      for (int e = 0; e < 2; ++e) {
        for (int q = 0; q < 4; ++q) a[g + q % 2 * 8][t * 2 + e + q / 2 * 8] = element<type>(args.a[q], e);
        for (int q = 0; q < 2; ++q) b[t * 2 + e + q * 8][g] = element<type>(args.b[q], e);
      }
    }
    for (int e = 0; e < 4; ++e) d[g + e / 2 * 8][t * 2 + e % 2] = args.d[e];
  }
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < K; ++k) {
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int l = 0; l < 32; ++l) {
    float* out = m.at<MmaArgs>(l).d;
    for (int e = 0; e < 4; ++e) out[e] = float(d[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2]);
  }
}

void finish_syncwarp(Meeting& m) {
  if (m.mask == 0xffffffffu) ++where.warp_sync[m.warp];
}

void finish_ballot(Meeting& m) {
  uint32_t votes = 0;
  each_lane(m.mask, [&](int l) { votes |= m.at<VoteArgs>(l).vote << l; });
  each_lane(m.mask, [&](int l) { m.at<VoteArgs>(l).result = votes; });
}

constexpr Finish kShuffles[] = {finish_shuffle<Shuffle::Index>, finish_shuffle<Shuffle::Up>,
                                finish_shuffle<Shuffle::Down>, finish_shuffle<Shuffle::Xor>};
constexpr Finish kReduces[] = {finish_reduce<Reduce::Add>,       finish_reduce<Reduce::Min>,
                               finish_reduce<Reduce::Max>,       finish_reduce<Reduce::MinSigned>,
                               finish_reduce<Reduce::MaxSigned>, finish_reduce<Reduce::And>,
                               finish_reduce<Reduce::Or>,        finish_reduce<Reduce::Xor>};
constexpr Finish kMmas[] = {finish_mma<Element::Half>, finish_mma<Element::BFloat16>, finish_mma<Element::Tf32>};

}  // namespace

void syncwarp(uint32_t mask, const Site& site) { meet(mask, finish_syncwarp, nullptr, site); }

uint32_t ballot(uint32_t mask, bool vote, const Site& site) {
  VoteArgs args{vote, 0};
  meet(mask, finish_ballot, &args, site);
  return args.result;
}

uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t value, int by, int width, const Site& site) {
  if (width < 1 || width > 32 || !std::has_single_bit(unsigned(width))) fail(site, "a shuffle of width %d", width);
  const int l = lane(), first = l & ~(width - 1), end = first + width;
  int from = l;
  if (mode == Shuffle::Index) from = first + (by & (width - 1));
  if (mode == Shuffle::Up) from = l - by < first ? l : l - by;
  if (mode == Shuffle::Down) from = l + by >= end ? l : l + by;
  if (mode == Shuffle::Xor) from = (l ^ by) >= end ? l : l ^ by;
  if (!(mask >> from & 1)) fail(site, "a shuffle from lane %d, which mask %08x lacks", from, mask);
  ShuffleArgs args{value, 0, from};
  meet(mask, kShuffles[int(mode)], &args, site);
  return args.result;
}

uint32_t reduce(Reduce op, uint32_t mask, uint32_t value, const Site& site) {
  VoteArgs args{value, 0};
  meet(mask, kReduces[int(op)], &args, site);
  return args.result;
}

void ldmatrix_x4(uint32_t* r, const void* row, bool trans, const Site& site) {
  check_shared(row, 16, "ldmatrix", site);
  MatrixArgs args{r, row};
  meet(0xffffffffu, trans ? finish_ldmatrix<true> : finish_ldmatrix<false>, &args, site);
}

void mma(Element type, float* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  MmaArgs args{d, a, b};
  meet(0xffffffffu, kMmas[int(type)], &args, site);
}

}  // namespace simt
