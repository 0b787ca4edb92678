#include "simt/shadow.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "simt/runtime.h"

namespace simt::trace {
namespace {

std::vector<Region> regions;
std::vector<int> live;
uintptr_t lowest, highest;  // of the live ones
std::vector<Race> found;
std::set<std::tuple<const char*, int, int>> known;  // what, and the points
std::vector<std::string> blocks;                    // of this launch, those that ended
uint32_t blocks_launch = 0;

void list_live() {
  live.clear();
  lowest = ~uintptr_t(0), highest = 0;
  for (size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].low == regions[i].high) continue;
    live.push_back(int(i));
    lowest = std::min(lowest, regions[i].low);
    highest = std::max(highest, regions[i].high + regions[i].slack);
  }
}

bool writes(Op op) { return op == Op::Write || op == Op::Atomic || op == Op::Pending || op == Op::CopyWrite; }
bool in_launch(const Stamp& s) { return s.block >= where.launch_block && s.block; }

// A barrier between the two, or a sync of their warp; blocks are never ordered, and lanes of a warp not by themselves.
bool ordered(const Stamp& before, const Stamp& now) {
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.barrier != now.barrier) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_sync != now.warp_sync;
}

std::string block_text(uint32_t block) {
  if (block == where.block) {
    return "(" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
           ")";
  }
  return block - where.launch_block < blocks.size() ? blocks[block - where.launch_block] : "?";
}

void report_race(const char* what, const Stamp& before, const Stamp& now, const Region& r, uintptr_t at) {
  if (!known.insert({what, before.block ? before.point : -1, now.point}).second) return;
  found.push_back(
      {what, int(&r - regions.data()), at - r.low, before, now, block_text(before.block), block_text(now.block)});
}

void add_reader(Cell& c, const Stamp& now) {
  for (Stamp& r : c.read) {
    if (r.block == now.block) continue;
    if (in_launch(r)) c.earlier_read = r;
    r = {};
  }
  Stamp(&r)[2] = c.read;
  for (Stamp& other : r) {  // one that what follows `now` cannot conflict with without conflicting with `now`
    if (!other.block || ordered(other, now)) return void(other = now);
  }
  if (r[0].thread / 32 == r[1].thread / 32) r[1] = now;
}

void check_byte(Cell& c, const Region& r, uintptr_t at, Op op, const Stamp& now) {
  const bool write = writes(op), atomic = op == Op::Atomic;
  const auto clash = [&](const Stamp& before, const char* what) {
    const bool meant = r.shared ? before.block == now.block : in_launch(before);
    if (meant && !ordered(before, now)) report_race(what, before, now, r, at);
  };
  if (op == Op::CopyWrite) {
    c.pending = {};
  } else if (c.pending.block == now.block) {
    report_race(write ? "write to where a cp.async may still land" : "read of what a cp.async may still write",
                c.pending, now, r, at);
  }
  for (const Stamp* earlier : {&c.write, &c.earlier_write}) {
    const Stamp& before = *earlier;
    if (!(atomic && before.atomic)) {
      clash(before, write ? "write after write" : "read after write");
    }
  }
  if (!write) {
    if (r.shared && c.write.block != now.block && c.pending.block != now.block) {
      report_race("uninitialised read", {}, now, r, at);
    }
    return add_reader(c, now);
  }
  for (const Stamp* before : {&c.read[0], &c.read[1], &c.earlier_read}) clash(*before, "write after read");
  if (op == Op::Pending) return void(c.pending = now);
  if (c.write.block != now.block && in_launch(c.write)) c.earlier_write = c.write;
  c.write = now;
  if (!atomic) c.read[0] = c.read[1] = c.earlier_read = {};
}

}  // namespace

void add_region(const void* data, size_t bytes, const char* name, size_t slack, bool shared) {
  const uintptr_t low = uintptr_t(data), high = low + bytes;
  Region* mine = nullptr;
  for (Region& r : regions) {
    const bool alike = r.shared == shared && r.name == name;
    if (alike && r.low == low && r.high == high) return;
    if (r.low < high && low < r.high) r.low = r.high = 0;  // freed without a word, and allocated again
    if (alike && (shared || r.low == r.high)) mine = &r;
  }
  if (!mine) {
    regions.push_back({name, shared});
    mine = &regions.back();
  }
  mine->low = low, mine->high = high, mine->slack = slack;
  if (bytes > mine->capacity) {
    mine->capacity = bytes;
    mine->cells.reset(static_cast<Cell*>(std::calloc(bytes, sizeof(Cell))));  // zero pages until they are touched
  }
  list_live();
}

void forget(const void* data) {
  for (Region& r : regions) {
    if (r.low != uintptr_t(data)) continue;
    r.low = r.high = r.capacity = 0;
    r.cells.reset();
  }
  list_live();
}

int find_region(uintptr_t at) {
  if (at < lowest || at >= highest) return -1;
  for (int i : live) {
    if (at >= regions[i].low && at < regions[i].high + regions[i].slack) return i;
  }
  return -1;
}

const Region& region_of(int number) { return regions[number]; }

void check(int region, uintptr_t at, int bytes, Op op, int thread, int point) {
  Region& r = regions[region];
  Stamp now;
  now.block = where.block;
  now.barrier = uint16_t(where.barrier);
  now.warp_sync = uint16_t(where.warp_sync[thread / 32]);
  now.thread = uint16_t(thread) & 0x7fff;
  now.atomic = op == Op::Atomic;
  now.point = uint16_t(point);
  const uintptr_t end = std::min(at + bytes, r.high);
  for (uintptr_t b = at; b < end; ++b) check_byte(r.cells[b - r.low], r, b, op, now);
  if (at + bytes > r.high) report_race("access past the end", {}, now, r, std::max(at, r.high));
}

const std::vector<Race>& races() { return found; }

void end_block_of_shadow() {
  if (blocks_launch != where.launch_block) blocks.clear();
  blocks_launch = where.launch_block;
  blocks.push_back(block_text(where.block));
}

void reset_shadow() {
  regions.clear();
  list_live();
  found.clear();
  known.clear();
}

}  // namespace simt::trace
