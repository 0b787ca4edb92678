// What the operators hold of their arguments on any device: they can be called without the public function's checks.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>

#include "common/map.h"
#include "common/tensor.h"

namespace rdk {

// The map of a call, after what a kernel relies on.
inline Map checked_map(const char* op, const Tensor& matrix, int64_t numel, int64_t columns, int64_t go, int64_t gi,
                       int64_t seed) {
  STD_TORCH_CHECK(matrix.dim() == 2, op, ": x and dy must be 2-D, got ", matrix.dim(), "-D");
  const bool granule = go >= 1 && gi >= 1 && std::has_single_bit(uint64_t(go)) && std::has_single_bit(uint64_t(gi)) &&
                       (gi >= 16 || go * gi == 1);
  STD_TORCH_CHECK(granule, op, ": granule (", go, ", ", gi, ") is none of the map's");
  STD_TORCH_CHECK(numel > 0 && numel % (go * gi) == 0 && numel / (go * gi) < int64_t(1) << 31, op,
                  ": bank must hold 1 to 2^31 - 1 slots of ", go * gi, " values, got ", numel, " values");
  STD_TORCH_CHECK(numel / 16 < int64_t(1) << 32 && std::max(columns, matrix.size(1)) < (int64_t(1) << 32) - 1, op,
                  ": too large: ", numel, " bank values, ", matrix.size(1), " and ", columns, " columns");
  return Map(seed, numel / (go * gi), go, gi);
}

inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the other tensors' dtype");
}

inline void check_bias(const char* op, const Tensor& bias, const Tensor& x, int64_t out_features) {
  check_like(op, "bias", bias, x);
  STD_TORCH_CHECK(bias.numel() == out_features, op, ": bias must have ", out_features, " values");
}

// A forward call's map, after its checks.
inline Map checked_forward(const char* op, const Tensor& x, const Tensor& bank, const std::optional<Tensor>& bias,
                           int64_t out_features, int64_t go, int64_t gi, int64_t seed) {
  const Map map = checked_map(op, x, bank.numel(), out_features, go, gi, seed);
  check_like(op, "bank", bank, x);
  if (bias) check_bias(op, *bias, x, out_features);
  return map;
}

inline void check_rows(const char* op, const Tensor& dy, const Tensor& x) {
  STD_TORCH_CHECK(dy.dim() == 2 && dy.size(0) == x.size(0), op, ": dy must have x's ", x.size(0), " rows");
}

}  // namespace rdk
