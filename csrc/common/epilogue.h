// What becomes of the last product: bias, residual and activation, rounded once into an image of any layout.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/conv.h"
#include "common/product.h"
#include "common/vec.h"

namespace rdk {

enum class Activation : int64_t { none, relu, gelu, silu };

typedef int32_t I __attribute__((vector_size(4 * kLanes)));

RDK_INLINE F select(I mask, F yes, F no) { return floats(((U)mask & bits(yes)) | (~(U)mask & bits(no))); }

// e^x to a few ulp: 2^n e^r with |r| <= ln 2 / 2; 0 below -87.3, infinity above 88.
RDK_INLINE F exp(F x) {
  const F n = [&] {
    const F shifted = x * splat(1.44269504f) + splat(0x1.8p23f);  // rounds to an integer in the low bits
    return shifted - splat(0x1.8p23f);
  }();
  const F r = (x - n * splat(0.693145752f)) - n * splat(1.42860677e-6f);
  F p = splat(1.98756912e-4f);
  p = p * r + splat(1.39819994e-3f);
  p = p * r + splat(8.33345205e-3f);
  p = p * r + splat(4.16657962e-2f);
  p = p * r + splat(1.66666657e-1f);
  p = p * r + splat(0.5f);
  p = p * r * r + r + splat(1.0f);
  const U power = ((U) __builtin_convertvector(n, I) + 127u) << 23;
  const F scaled = p * floats(power);
  const F low = select((I)(x < splat(-87.3f)), splat(0.0f), scaled);
  return select((I)(x > splat(88.0f)), splat(std::numeric_limits<float>::infinity()), low);  // NaN passes the sums
}

// erf to 1.5e-7 of 1 (Abramowitz, Stegun 7.1.26) and three times that with the roundings.
RDK_INLINE F erf(F x) {
  const U sign = bits(x) & 0x80000000u;
  const F a = floats(bits(x) ^ sign), t = splat(1.0f) / (splat(1.0f) + splat(0.3275911f) * a);
  F p = splat(1.061405429f);
  p = p * t - splat(1.453152027f);
  p = p * t + splat(1.421413741f);
  p = p * t - splat(0.284496736f);
  p = p * t + splat(0.254829592f);
  return floats(bits(splat(1.0f) - p * t * exp(-(a * a))) ^ sign);
}

RDK_INLINE F activate(Activation kind, F x) {
  switch (kind) {
    case Activation::relu:
      return select((I)(splat(0.0f) > x), splat(0.0f), x);  // a NaN stays
    case Activation::gelu:
      return splat(0.5f) * x * (splat(1.0f) + erf(x * splat(0.707106781f)));
    case Activation::silu:
      return x / (splat(1.0f) + exp(-x));
    default:
      return x;
  }
}

RDK_INLINE V16 activate(Activation kind, V16 x) {
  RDK_UNROLL for (int i = 0; i < kRegs; ++i) x.r[i] = activate(kind, x.r[i]);
  return x;
}

RDK_INLINE void store_first(float* p, V16 v, int n) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v.r[0]);
#else
  alignas(64) float lanes[kVec];
  store16(lanes, v);
  std::memcpy(p, lanes, size_t(n) * sizeof(float));
#endif
}

RDK_INLINE V16 load_first(const float* p, int n) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  return V16{{(F)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}};
#else
  alignas(64) float lanes[kVec] = {};
  std::memcpy(lanes, p, size_t(n) * sizeof(float));
  return load16(lanes);
#endif
}

RDK_INLINE void store_lanes(float* p, F x) { store(p, x); }
RDK_INLINE void store_lanes(BFloat16* p, F x) {
  const U u = bits(x), rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, nan = u >> 16 | 0x40u;
  const I is_nan = (I)(x != x);
  *reinterpret_cast<Hu*>(&p->bits) = __builtin_convertvector(((U)is_nan & nan) | (~(U)is_nan & rounded), H);
}
RDK_INLINE void store_lanes(Half* p, F x) {
#if defined(__AVX512F__) && !defined(RDK_LANES)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && !defined(RDK_LANES)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  for (int l = 0; l < kLanes; ++l) convert(lanes[l], p + l);
#endif
}

// Lanes [0, n) of `v`, rounded, to places `stride` apart.
template <class T>
RDK_INLINE void put16(T* p, int64_t stride, V16 v, int n) {
  if (stride == 1 && n == kVec) {
    RDK_UNROLL for (int i = 0; i < kRegs; ++i) store_lanes(p + i * kLanes, v.r[i]);
    return;
  }
  alignas(64) float lanes[kVec];
  store16(lanes, v);
  for (int l = 0; l < n; ++l) convert(lanes[l], p + l * stride);
}

template <class T>
RDK_INLINE V16 get16(const T* p, int64_t stride, int n) {
  if (stride == 1 && n == kVec) return load16(p);
  alignas(64) float lanes[kVec] = {};
  for (int l = 0; l < n; ++l) lanes[l] = to_float(p[l * stride]);
  return load16(lanes);
}

// y and what is added to it. The residual has y's strides.
template <class T>
struct Output {
  Image<T> y;
  const float* bias;  // whole strips, zeros beyond the channels
  const T* residual;  // or null
  Activation activation;
  const int64_t* order = nullptr;  // of column c of the last product, its channel of y; null where they are the same

  // Whether the last product writes y from its registers.
  bool direct() const { return std::is_same_v<T, float> && y.c_stride == 1 && !order && activation < Activation::gelu; }
};

// The last product of one row of the output straight into fp32 pixels whose channels lie side by side.
struct ToPixels {
  float* y;  // pixel 0, channel 0
  const float* residual;
  int64_t pixel;
  int64_t channels;
  const float* bias;
  float floor;  // 0 for ReLU, else minus infinity

  // The lines of y come while the product is computed.
  template <int R, int NJ>
  RDK_INLINE void prepare(int64_t first, int64_t strip) const {
    RDK_UNROLL for (int r = 0; r < R; ++r) {
      RDK_UNROLL for (int j = 0; j < NJ; ++j) __builtin_prefetch(y + (first + r) * pixel + (strip + j) * kVec, 1, 3);
    }
  }

  template <int R, int NJ>
  RDK_INLINE void put(int64_t first, int64_t strip, const Block<R, NJ>& block) const {
    RDK_UNROLL for (int j = 0; j < NJ; ++j) {
      const int64_t c = (strip + j) * kVec;
      const int n = int(std::min<int64_t>(kVec, channels - c));
      const V16 added = load16(bias + c);
      RDK_UNROLL for (int r = 0; r < R; ++r) {
        const int64_t at = (first + r) * pixel + c;
        V16 v = add(block.v[r][j], added);
        if (residual) v = add(v, n == kVec ? load16(residual + at) : load_first(residual + at, n));
        RDK_UNROLL for (int i = 0; i < kRegs; ++i) v.r[i] = select((I)(splat(floor) > v.r[i]), splat(floor), v.r[i]);
        n == kVec ? store16(y + at, v) : store_first(y + at, v, n);
      }
    }
  }
};

// Pixels [x, x + count) of a row from fp32 rows `c` of strips that begin at column `first`: the way of all other
// outputs.
template <class T>
__attribute__((noinline, noclone)) void finish(const Output<T>& out, int64_t image, int64_t row, int64_t x,
                                               int64_t count, const float* c, int64_t c_row, int64_t first,
                                               int64_t columns) {
  T* const y = out.y.at(image, row, x);
  const T* const residual = out.residual ? out.residual + (y - out.y.data) : nullptr;
  const int64_t pixel = out.y.w_stride, channel = out.y.c_stride;
  for (int64_t s = 0; s < columns; s += kVec) {
    const int n = int(std::min<int64_t>(kVec, columns - s));
    const V16 bias = load16(out.bias + first + s);
    if (pixel != 1 || out.order) {
      for (int64_t m = 0; m < count; ++m) {
        V16 v = add(load16(c + m * c_row + s), bias);
        if (out.order) {
          alignas(64) float lanes[kVec] = {};
          for (int l = 0; residual && l < n; ++l) {
            lanes[l] = to_float(residual[m * pixel + out.order[first + s + l] * channel]);
          }
          store16(lanes, activate(out.activation, add(v, load16(lanes))));
          for (int l = 0; l < n; ++l) convert(lanes[l], y + m * pixel + out.order[first + s + l] * channel);
          continue;
        }
        const int64_t at = m * pixel + (first + s) * channel;
        if (residual) v = add(v, get16(residual + at, channel, n));
        put16(y + at, channel, activate(out.activation, v), n);
      }
      continue;
    }
    for (int64_t m = 0; m < count; m += kVec) {  // pixels side by side: sixteen by sixteen
      const int pixels = int(std::min<int64_t>(kVec, count - m));
      V16 v[kVec];
      for (int i = 0; i < kVec; ++i) v[i] = i < pixels ? add(load16(c + (m + i) * c_row + s), bias) : V16{};
      transpose16(v);
      for (int l = 0; l < n; ++l) {
        const int64_t at = m + (first + s + l) * channel;
        if (residual) v[l] = add(v[l], get16(residual + at, 1, pixels));
        put16(y + at, 1, activate(out.activation, v[l]), pixels);
      }
    }
  }
}

// The last product of a tile's row, `columns` of it, into columns from `first`.
template <bool kSplit = false, class T>
void product_to(const Output<T>& out, const Product& p, int64_t image, int64_t row, int64_t x, int64_t count,
                int64_t columns, float* buffer, int64_t first = 0) {
  const int64_t strips = strips_of(columns);
  if constexpr (std::is_same_v<T, float>) {
    if (out.direct()) {
      float* const y = out.y.at(image, row, x) + first;
      const float* const residual = out.residual ? out.residual + (y - out.y.data) : nullptr;
      const float floor = out.activation == Activation::relu ? 0.0f : -std::numeric_limits<float>::infinity();
      return product<kSplit>(p, count, strips, ToPixels{y, residual, out.y.w_stride, columns, out.bias + first, floor});
    }
  }
  for (int64_t s = 0; s < strips; s += kBlockStrips) {
    Product part = p;
    part.b += s * p.b_strip;
    const int64_t width = std::min<int64_t>(kBlockStrips, strips - s);
    product<kSplit>(part, count, width, ToRows{buffer, kBlockStrips * kVec});
    finish(out, image, row, x, count, buffer, kBlockStrips * kVec, first + s * kVec,
           std::min(width * kVec, columns - s * kVec));
  }
}

// Bias as whole strips of fp32, and one more: a cluster's columns begin anywhere.
template <class T>
std::vector<float> padded_bias(const T* bias, int64_t channels, const int64_t* order = nullptr) {
  std::vector<float> padded(size_t((strips_of(channels) + 1) * kVec));
  for (int64_t c = 0; bias && c < channels; ++c) padded[size_t(c)] = to_float(bias[order ? order[c] : c]);
  return padded;
}

}  // namespace rdk
