// Sixteen-lane vectors of the virtual matrix V in the registers of one thread: packed pairs of 16-bit values, or words.
#pragma once

#include "common/block_product.cuh"
#include "common/map.h"

namespace rdk::gpu {

// Granules with code of their own: (1, 1), (1, 16), (32, 32), and every other.
enum class Granule { element, chunk, tile, any };

template <class T>
constexpr int kWords = 4 * int(sizeof(T));  // 32-bit words of a vector

template <class T, Granule kGranule, bool kShared = false>
struct Weights {
  const T* bank;  // in shared memory if kShared
  Map map;

  // Whether one hash serves every row and vector of a 32 x 32 block.
  static constexpr bool kOneHash = kGranule == Granule::tile;

  // The hash of the granule that holds vector v of row o; of an element granule: what its sixteen hashes share.
  RDK_DEVICE uint32_t hash(uint32_t o, uint32_t v) const {
    if constexpr (kGranule == Granule::element) {
      return hash_prefix(o, map.seed) + v * (16u * kPrime3);
    } else if constexpr (kGranule == Granule::chunk) {
      return hash_finish(hash_prefix(o, map.seed) + v * kPrime3);
    } else if constexpr (kGranule == Granule::tile) {
      return hash_finish(hash_prefix(o >> 5, map.seed) + (v >> 1) * kPrime3);
    } else {
      return hash_finish(hash_prefix(o >> map.go_shift, map.seed) + (v >> map.row_shift()) * kPrime3);
    }
  }

  // Raw values of vector v of row o, unsigned but for elements; sign() finishes them. Past V's edges: some of the bank.
  RDK_DEVICE void fetch(uint32_t (&raw)[kWords<T>], uint32_t& aux, uint32_t h, uint32_t o, uint32_t v) const {
    if constexpr (kGranule == Granule::element) {
      aux = 0;
      gather(raw, h);
    } else {
      aux = aux_of(h);
      const T* from = bank + size_t(place(h, aux, o, v)) * 16;
#pragma unroll
      for (int n = 0; n < kWords<T> / 4; ++n) {
        const uint4 four = kShared ? load16(from + n * 16 / sizeof(T)) : load16_const(from + n * 16 / sizeof(T));
        raw[4 * n] = four.x, raw[4 * n + 1] = four.y, raw[4 * n + 2] = four.z, raw[4 * n + 3] = four.w;
      }
    }
  }

  // The lanes' sign bits: lane l's is bit l/2 + 16 (l%2) of aux, so that a packed pair finds both 16 bits apart.
  RDK_DEVICE static void sign(uint32_t (&raw)[kWords<T>], uint32_t aux) {
#pragma unroll
    for (int n = 0; n < (kGranule == Granule::element ? 0 : kWords<T>); ++n) {
      if constexpr (sizeof(T) == 2) {
        raw[n] ^= (aux << (15 - n)) & 0x80008000u;
      } else {
        raw[n] ^= (aux << (31 - n / 2 - n % 2 * 16)) & kSignBit;
      }
    }
  }

  RDK_DEVICE void vector(uint32_t (&raw)[kWords<T>], uint32_t o, uint32_t v) const {
    uint32_t aux;
    fetch(raw, aux, hash(o, v), o, v);
    sign(raw, aux);
  }

  // V[o, i] of an element map, as fp32: the hashed bias.
  RDK_DEVICE float element(uint32_t o, uint32_t i) const {
    const uint32_t h = hash_finish(hash_prefix(o, map.seed) + i * kPrime3);
    return __uint_as_float(__float_as_uint(to_float(bank[__umulhi(h, map.slots)])) ^ h << 31);
  }

 private:
  // Which of the bank's vectors stands at vector v of row o, in a granule of hash h.
  RDK_DEVICE uint32_t place(uint32_t h, uint32_t aux, uint32_t o, uint32_t v) const {
    const uint32_t slot = __umulhi(h, map.slots);
    if constexpr (kGranule == Granule::tile) {
      return slot * 64 + (((o & 31) * 2 + (v & 1)) ^ ((aux >> 23 & 62) + (aux >> 8 & 1)));
    } else if constexpr (kGranule == Granule::any) {
      const uint32_t row = (o ^ aux >> 24) & map.go_mask(), vector = (v ^ aux >> 8) & map.vector_mask();
      return (slot << map.slot_shift()) + (row << map.row_shift()) + vector;
    } else {
      return slot;
    }
  }

  RDK_DEVICE void gather(uint32_t (&raw)[kWords<T>], uint32_t prefix) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        const uint32_t h = hash_finish(prefix + n * kPrime3);
        raw[n] = reinterpret_cast<const uint32_t*>(bank)[__umulhi(h, map.slots)] ^ h << 31;
      }
    } else {
      const uint16_t* values = reinterpret_cast<const uint16_t*>(bank);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const uint32_t even = hash_finish(prefix + 2 * n * kPrime3), odd = hash_finish(prefix + (2 * n + 1) * kPrime3);
        const uint32_t low = values[__umulhi(even, map.slots)], high = values[__umulhi(odd, map.slots)];
        raw[n] = (low | high << 16) ^ (((even << 15) & 0x8000u) | odd << 31);
      }
    }
  }
};

// Zero from lane n on: what stands past V's edge must not meet a zero of the other operand as NaN or infinity.
template <class T>
RDK_DEVICE void cut(uint32_t (&raw)[kWords<T>], int n) {
#pragma unroll
  for (int w = 0; w < kWords<T>; ++w) {
    if constexpr (sizeof(T) == 2) {
      raw[w] &= n >= 2 * w + 2 ? 0xffffffffu : n == 2 * w + 1 ? 0xffffu : 0u;
    } else {
      raw[w] = w < n ? raw[w] : 0u;
    }
  }
}

// Where the threads of a block stand in its kRows x kVectors part of V. Those of one 32 x 32 block share it, each with
// whole rows' pairs of vectors where there are enough, so that one hash serves all of a thread's vectors.
template <int kRows, int kVectors>
struct Share {
  static constexpr int kBlocks = kRows / 32 * (kVectors / 2), kMates = kThreads / kBlocks;
  static constexpr int kR = kMates <= 32 ? 32 / kMates : 1, kV = kMates <= 32 ? 2 : 1;
  static_assert(kMates >= 16 && kMates <= 64);

  RDK_DEVICE static int block() { return threadIdx.x / kMates; }
  RDK_DEVICE static int row(int r) {
    return block() / (kVectors / 2) * 32 + threadIdx.x % (kMates < 32 ? kMates : 32) + r * kMates;
  }
  RDK_DEVICE static int vector(int v) {
    return block() % (kVectors / 2) * 2 ^ (kV == 2 ? v : threadIdx.x % kMates / 32);
  }
};

// A block of V on its way from the bank to shared memory: fetched one product ahead, signed and stored after it.
template <class T, class W, int kRows, int kVectors, class Tile>
struct Decoder {
  using Mine = Share<kRows, kVectors>;
  uint32_t raw[Mine::kR][Mine::kV][kWords<T>];
  uint32_t aux[Mine::kR][Mine::kV];
  const int at = Tile::chunk(Mine::row(0), Mine::vector(0) * (kWords<T> / 4));

  // V[o0 .., 16 v0 ..]; o0 and 16 v0 are multiples of 32.
  RDK_DEVICE void fetch(const W& weights, uint32_t o0, uint32_t v0) {
    const uint32_t shared = W::kOneHash ? weights.hash(o0 + Mine::row(0), v0 + Mine::vector(0)) : 0;
#pragma unroll
    for (int r = 0; r < Mine::kR; ++r) {
#pragma unroll
      for (int v = 0; v < Mine::kV; ++v) {
        // in a shared granule only the place inside it is asked for
        const uint32_t o = Mine::row(r) + (W::kOneHash ? 0 : o0), at = Mine::vector(v) + (W::kOneHash ? 0 : v0);
        weights.fetch(raw[r][v], aux[r][v], W::kOneHash ? shared : weights.hash(o, at), o, at);
      }
    }
  }

  RDK_DEVICE void store(T* to) {
#pragma unroll
    for (int r = 0; r < Mine::kR; ++r) {
#pragma unroll
      for (int v = 0; v < Mine::kV; ++v) {
        uint32_t (&words)[kWords<T>] = raw[r][v];
        W::sign(words, aux[r][v]);
#pragma unroll
        for (int n = 0; n < kWords<T> / 4; ++n) {
          store16(to + (at ^ 16 * v ^ n * Tile::kValues) + r * Mine::kMates * Tile::kCols,
                  make_uint4(words[4 * n], words[4 * n + 1], words[4 * n + 2], words[4 * n + 3]));
        }
      }
    }
  }

  // Rows past `rows` and lanes past `lanes` of what this thread stored become zero: the other operand's zeros there
  // must not meet NaN or infinity.
  RDK_DEVICE static void clear(T* to, int rows, int lanes) {
#pragma unroll 1
    for (int n = 0; n < Mine::kR * Mine::kV; ++n) {
      const int row = Mine::row(n / Mine::kV), begin = 16 * Mine::vector(n % Mine::kV);
#pragma unroll 1
      for (int lane = row < rows ? max(begin, lanes) : begin; lane < begin + 16; ++lane) {
        to[Tile::value(row, lane)] = from_float<T>(0.0f);
      }
    }
  }
};

}  // namespace rdk::gpu
