// The shadow of memory: for each byte of the registered regions, who touched it last, and the races found by that.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "simt/trace.h"

namespace simt::trace {

// One access: the thread, and how far its block and warp were. `point`: the place in the code, an index of the
// caller's.
struct Stamp {
  uint32_t block = 0;  // 0: nobody
  uint16_t barrier = 0, warp_sync = 0;
  uint16_t thread : 15 = 0, atomic : 1 = 0;
  uint16_t point = 0;
};

// Of one byte. Blocks run one after the other: of all earlier blocks of a launch one stamp is enough, and of the
// running one two readers are, of two warps if there are two: whoever writes next differs from one of them.
struct Cell {
  Stamp write, earlier_write, read[2], earlier_read, pending;
};

struct Region {
  std::string name;
  bool shared;
  uintptr_t low = 0, high = 0;  // empty: forgotten; it keeps its number for a later one of its name
  size_t slack = 0, capacity = 0;
  std::unique_ptr<Cell[], decltype(&std::free)> cells{nullptr, std::free};
};

struct Race {
  const char* what;
  int region;
  size_t offset;
  Stamp before, after;  // before.block 0: there is none
  std::string before_block, after_block;
};

void add_region(const void* data, size_t bytes, const char* name, size_t slack, bool shared);
int find_region(uintptr_t at);  // the region, with its slack, or -1
const Region& region_of(int number);
// Records an access by `thread` of the running block.
void check(int region, uintptr_t at, int bytes, Op op, int thread, int point);
const std::vector<Race>& races();
void end_block_of_shadow();
void reset_shadow();

}  // namespace simt::trace
