// Every warp's requests, place by place in the code, and the report. Compiled without -fsanitize=thread.
#include "simt/trace.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <unordered_map>

#include "simt/runtime.h"
#include "simt/shadow.h"
#include "simt/symbols.h"

namespace simt::trace {
namespace {

struct Request {
  uint32_t mask = 0;
  uint8_t bytes[32];
  uintptr_t at[32];
};

// Where the code is: a return address, or a file and line.
struct Place {
  uintptr_t pc;
  const char* file;
  uint32_t line;
  auto operator<=>(const Place&) const = default;
};

// A place of the code with the kind of its access.
struct Point {
  Place place;
  Op op;
  int bytes;
  int region;
  std::vector<uint32_t> seen;                  // by thread: executions in this block
  std::vector<std::vector<Request>> requests;  // by warp: the k-th execution by each lane is one request
  uint64_t count = 0, lanes = 0, units = 0, ideal = 0;
  int worst = 0;
};

struct PlaceHash {
  size_t operator()(const Place& p) const {
    return (p.pc ^ uintptr_t(p.file) ^ size_t(p.line) << 40) * 0x9e3779b97f4a7c15u;
  }
};

std::vector<Point> points;
std::unordered_map<Place, std::vector<uint16_t>, PlaceHash> at_place;
uint64_t accesses = 0;

// The point of a place, found last time at the same slot of a small table or else by hash.
struct Found {
  Place place{};
  int bytes = 0, region = -1, point = 0;
  Op op{};
};
std::array<Found, 1024> found;

int look_up_point(const Place& place, Op op, int bytes, int region) {
  std::vector<uint16_t>& here = at_place[place];
  for (uint16_t i : here) {
    if (points[i].op == op && points[i].bytes == bytes && points[i].region == region) return i;
  }
  if (points.size() == 65535) fail(Site(), "trace: too many places");
  points.push_back({place, op, bytes, region, {}, {}});
  here.push_back(uint16_t(points.size() - 1));
  return int(points.size() - 1);
}

int find_point(const Place& place, Op op, int bytes, int region) {
  Found& f = found[(place.pc ^ place.pc >> 10 ^ place.line * 8 ^ uint32_t(op)) % found.size()];
  if (f.region != region || f.op != op || f.bytes != bytes || f.place != place) {
    f = {place, bytes, region, look_up_point(place, op, bytes, region), op};
  }
  return f.point;
}

void count_lane(Point& p, int thread, uintptr_t at, int bytes) {
  if (p.seen.empty()) p.seen.resize(1024);
  if (p.requests.empty()) p.requests.resize(32);
  const uint32_t k = p.seen[thread]++;
  std::vector<Request>& warp = p.requests[thread / 32];
  if (warp.size() <= k) warp.resize(k + 1);
  if (!bytes) return;
  Request& q = warp[k];
  q.mask |= 1u << thread % 32;
  q.at[thread % 32] = at;
  q.bytes[thread % 32] = uint8_t(bytes);
}

void access_at(const Place& place, uintptr_t at, int bytes, Op op) {
  if (!where.running) return;
  const int region = find_region(at);
  if (region < 0) return;
  ++accesses;
  const int point = find_point(place, op, op == Op::CopyRead ? 16 : bytes, region);
  check(region, at, bytes, op, where.thread, point);
  if (op != Op::CopyWrite) count_lane(points[point], where.thread, at, bytes);
}

struct Cost {
  int units, ideal;
};

Cost sectors(const Request& q) {
  std::array<uintptr_t, 32 * 2> sector;
  std::array<uintptr_t, 32> start;
  int n = 0, lanes = 0, bytes = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(q.mask >> l & 1)) continue;
    start[lanes++] = q.at[l];
    bytes = std::max<int>(bytes, q.bytes[l]);
    for (uintptr_t s = q.at[l] / 32; s <= (q.at[l] + q.bytes[l] - 1) / 32; ++s) sector[n++] = s;
  }
  const auto distinct = [](uintptr_t* first, int count) {
    std::sort(first, first + count);
    return int(std::unique(first, first + count) - first);
  };
  return {distinct(sector.data(), n), (distinct(start.data(), lanes) * bytes + 31) / 32};
}

// 32 banks of 4 bytes, a word of each at once; accesses of 8 bytes go by half warps, of 16 by quarters.
Cost wavefronts(const Request& q, int bytes) {
  const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  Cost cost{0, 0};
  for (int first = 0; first < 32; first += lanes) {
    std::vector<uintptr_t> words[32];
    size_t most = 0;
    for (int l = first; l < first + lanes; ++l) {
      if (!(q.mask >> l & 1)) continue;
      for (uintptr_t w = q.at[l] / 4; w <= (q.at[l] + q.bytes[l] - 1) / 4; ++w) {
        std::vector<uintptr_t>& bank = words[w % 32];
        if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
        most = std::max(most, bank.size());
      }
    }
    cost.units += int(most);
    cost.ideal += most > 0;
  }
  return cost;
}

void tally(Point& p, const Request& q) {
  if (!q.mask) return;
  const Cost cost = region_of(p.region).shared ? wavefronts(q, p.bytes) : sectors(q);
  ++p.count;
  p.lanes += uint64_t(__builtin_popcount(q.mask));
  p.units += uint64_t(cost.units);
  p.ideal += uint64_t(cost.ideal);
  p.worst = std::max(p.worst, cost.units);
}

const char* name(Op op) {
  switch (op) {
    case Op::Write:
      return "st";
    case Op::Atomic:
      return "atom";
    case Op::CopyRead:
    case Op::Pending:
    case Op::CopyWrite:
      return "cp";
    case Op::MatrixRead:
      return "ldsm";
    default:
      return "ld";
  }
}

}  // namespace

void region(const void* data, size_t bytes, const char* name, size_t slack) {
  add_region(data, bytes, name, slack, false);
}
void shared_region(const void* data, size_t bytes, const char* name) { add_region(data, bytes, name, 0, true); }

void reset() {
  reset_shadow();
  points.clear();
  at_place.clear();
  found.fill({});
  accesses = 0;
}

void access(const void* p, int bytes, Op op, const Site& site) {
  access_at({0, site.file_name(), site.line()}, uintptr_t(p), bytes, op);
}

void race_only(const void* p, int bytes, Op op, int thread, const Site& site) {
  const int region = find_region(uintptr_t(p));
  if (region < 0) return;
  check(region, uintptr_t(p), bytes, op, thread, find_point({0, site.file_name(), site.line()}, op, 16, region));
}

void request(const void* const (&lanes)[32], uint32_t mask, int bytes, Op op, const Site& site) {
  Request q;
  int region = -1;
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1) || (region = find_region(uintptr_t(lanes[l]))) < 0) continue;
    q.mask |= 1u << l;
    q.at[l] = uintptr_t(lanes[l]);
    q.bytes[l] = uint8_t(bytes);
    ++accesses;
  }
  if (region >= 0) tally(points[find_point({0, site.file_name(), site.line()}, op, bytes, region)], q);
}

void end_block() {
  end_block_of_shadow();
  for (Point& p : points) {
    for (std::vector<Request>& warp : p.requests) {
      for (const Request& q : warp) tally(p, q);
      warp.clear();
    }
    std::fill(p.seen.begin(), p.seen.end(), 0);
  }
}

Report report() {
  std::vector<uintptr_t> pcs;
  for (const Point& p : points) {
    if (p.place.pc) pcs.push_back(p.place.pc);
  }
  const auto lines = source_lines(pcs);
  const auto source = [&](const Point& p) {
    return p.place.pc ? lines.at(p.place.pc) : Line{base_name(p.place.file), int(p.place.line)};
  };
  Report out;
  out.accesses = accesses;
  std::map<std::tuple<std::string, int, std::string, std::string, std::string, int>, std::vector<const Point*>> merged;
  for (const Point& p : points) {
    if (!p.count) continue;
    const Line at = source(p);
    const Region& r = region_of(p.region);
    merged[{at.file, at.line, name(p.op), r.shared ? "shared" : "global", r.name, p.bytes}].push_back(&p);
  }
  for (const auto& [key, group] : merged) {
    uint64_t count = 0, lanes = 0, units = 0, ideal = 0;
    int worst = 0;
    for (const Point* p : group) {
      count += p->count, lanes += p->lanes, units += p->units, ideal += p->ideal;
      worst = std::max(worst, p->worst);
    }
    const auto& [file, line, op, space, region, bytes] = key;
    out.rows.push_back({file, line, op, space, region, bytes, count, double(lanes) / double(count),
                        double(units) / double(count), double(units) / double(ideal), worst});
  }
  std::set<std::string> told;  // a line once, though it may stand for several instructions
  for (const Race& race : races()) {
    const auto place = [&](const Stamp& s) {
      const Line at = source(points[s.point]);
      return at.file + ":" + std::to_string(at.line);
    };
    const auto who = [&](const Stamp& s, const std::string& block) {
      return "thread " + std::to_string(s.thread) + " of block " + block + " at " + place(s);
    };
    const std::string before = race.before.block ? place(race.before) : "";
    if (!told.insert(race.what + region_of(race.region).name + before + place(race.after)).second) continue;
    std::string text =
        std::string(race.what) + " of " + region_of(race.region).name + " + " + std::to_string(race.offset) + ": ";
    if (race.before.block) text += who(race.before, race.before_block) + ", then ";
    out.races.push_back(text + who(race.after, race.after_block));
  }
  return out;
}

void print(FILE* to) {
  const Report r = report();
  std::fprintf(to, "%zu races, %llu accesses\n", r.races.size(), (unsigned long long)r.accesses);
  for (const std::string& race : r.races) std::fprintf(to, "race: %s\n", race.c_str());
  std::fprintf(to, "%-28s %-4s %-6s %-22s %5s %9s %6s %10s %7s %5s\n", "line", "op", "space", "region", "bytes",
               "requests", "lanes", "sect|wave", "x ideal", "worst");
  for (const Row& row : r.rows) {
    std::fprintf(to, "%-28s %-4s %-6s %-22s %5d %9llu %6.1f %10.2f %7.2f %5d\n",
                 (row.file + ":" + std::to_string(row.line)).c_str(), row.op.c_str(), row.space.c_str(),
                 row.region.c_str(), row.bytes, (unsigned long long)row.requests, row.lanes, row.units, row.ratio,
                 row.worst);
  }
}

// The instrumentation's calls; `access_at` is in this namespace.
void hooked(uintptr_t pc, const void* p, uintptr_t bytes, bool write) {
  access_at({pc, nullptr, 0}, uintptr_t(p), int(bytes), write ? Op::Write : Op::Read);
}

}  // namespace simt::trace
