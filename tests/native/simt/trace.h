// What a launch did to memory: races, reads of what nobody wrote, sectors and bank conflicts. Filled where the kernels
// are compiled with -fsanitize=thread -DSIMT_TRACE and linked with trace.cpp; elsewhere all of this does nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <source_location>
#include <string>
#include <vector>

namespace simt {

using Site = std::source_location;

namespace trace {

// Pending: a cp.async that may land at any time until it is reported again as CopyWrite.
enum class Op : uint8_t { Read, Write, Atomic, CopyRead, Pending, CopyWrite, MatrixRead };

// All accesses of one source line that are alike. A request is one instruction of one warp.
struct Row {
  std::string file;
  int line;
  std::string op;     // ld, st, atom, cp (of cp.async: ld its source, st its destination) or ldsm
  std::string space;  // global or shared
  std::string region;
  int bytes;  // by lane
  uint64_t requests;
  double lanes;  // a request's, on average
  double units;  // 32-byte sectors (global) or bank wavefronts (shared) of a request, on average
  double ratio;  // to the fewest possible
  int worst;     // units of a request
};

struct Report {
  uint64_t accesses = 0;
  std::vector<Row> rows;
  std::vector<std::string> races;  // and uninitialised reads
};

#ifdef SIMT_TRACE
constexpr bool kOn = true;
// Accesses to memory that was never registered are not looked at; shared memory registers itself. The `slack` bytes
// past the end are nobody's: an access there is reported.
void region(const void* data, size_t bytes, const char* name, size_t slack = 0);
void forget(const void* data);  // the region that begins there: before its memory is freed
void reset();                   // forgets regions, rows and races
Report report();
void print(FILE* to);

void shared_region(const void* data, size_t bytes, const char* name);
void access(const void* p, int bytes, Op op, const Site& site);
// One byte range of a warp's request that the model of requests does not count again.
void race_only(const void* p, int bytes, Op op, int thread, const Site& site);
void request(const void* const (&lanes)[32], uint32_t mask, int bytes, Op op, const Site& site);
void end_block();
#else
constexpr bool kOn = false;
inline void region(const void*, size_t, const char*, size_t = 0) {}
inline void forget(const void*) {}
inline void reset() {}
inline Report report() { return {}; }
inline void print(FILE*) {}
inline void shared_region(const void*, size_t, const char*) {}
inline void access(const void*, int, Op, const Site&) {}
inline void race_only(const void*, int, Op, int, const Site&) {}
inline void request(const void* const (&)[32], uint32_t, int, Op, const Site&) {}
inline void end_block() {}
#endif

}  // namespace trace
}  // namespace simt
