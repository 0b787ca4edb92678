// Which granules share a slot: the list that the bank's gradient walks through.
#pragma once

#include "hashed_linear/launch.cuh"

namespace rdk::gpu {

// keys[n] = slot of granule n, n counted from granule (p0, q0) along rows of `across`.
static __global__ void __launch_bounds__(256)
    granule_keys(Map map, int p0, int q0, int across, int granules, int* keys) {
  const int n = blockIdx.x * 256 + threadIdx.x;
  if (n >= granules) return;
  const uint32_t p = p0 + n / across, q = q0 + n % across;
  keys[n] = int(__umulhi(hash_finish(hash_prefix(p, map.seed) + q * kPrime3), map.slots));
}

// From keys in order and where each came from: the members' list.
static __global__ void __launch_bounds__(256)
    member_list(const int* sorted, const int64_t* from, int granules, int slots, int* order, int* first) {
  const int n = blockIdx.x * 256 + threadIdx.x;
  if (n > granules) return;
  const int key = n < granules ? sorted[n] : slots, before = n ? sorted[n - 1] : -1;
  for (int slot = before + 1; slot <= key; ++slot) first[slot] = n;
  if (n < granules) order[n] = int(from[n]);
}

inline Members members_of(const Map& map, const Region& where, Workspace& memory, const Device& device) {
  const int granules = where.down * where.across, slots = int(map.slots);
  int* const keys = static_cast<int*>(memory.take(int64_t(granules) * sizeof(int)));
  RDK_LAUNCH((granule_keys), dim3(blocks_of(granules, 256)), dim3(256), 0, device.stream, map, where.p0, where.q0,
             where.across, granules, keys);
  check_launch("granule_keys");
  const int* sorted;
  const int64_t* from;
  memory.sort(keys, granules, &sorted, &from);
  int* const order = static_cast<int*>(memory.take(int64_t(granules) * sizeof(int)));
  int* const first = static_cast<int*>(memory.take((int64_t(slots) + 1) * sizeof(int)));
  RDK_LAUNCH((member_list), dim3(blocks_of(granules + 1, 256)), dim3(256), 0, device.stream, sorted, from, granules,
             slots, order, first);
  check_launch("member_list");
  return {order, first, where.across};
}

}  // namespace rdk::gpu
