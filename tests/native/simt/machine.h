// The state of the machine, for the parts of the runtime: runtime.cpp and memory.cpp.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simt/fiber.h"
#include "simt/runtime.h"

namespace simt {

constexpr int kMaxThreads = 1024;

enum class State : uint8_t { Ready, Barrier, Meeting, Done };
struct Copy {
  void* to;
  int bytes, group;
  Site site;
  alignas(16) unsigned char data[16];
};

struct Fiber {
  Context context;
  std::unique_ptr<Stack> stack;
  State state;
  int index;
  uint3 id;
  Site site;                 // where it waits
  std::vector<Copy> copies;  // from `landed` on, under way
  size_t landed;
  int groups;  // committed
};

struct Barrier {
  int arrived;
  Site site;
  int first, votes;
  int result[2];  // by parity: the next barrier may gather before the last thread has read this one
};

struct Warp {
  int open;
  Meeting meetings[32];  // at most 32 masks without a lane in common
};

struct Array {
  const void* data;
  size_t bytes;
};

struct Machine {
  Context main;
  std::vector<Fiber> fibers;
  std::vector<int> order;  // of the threads; turn: the next of it to be looked at
  int threads, turn, ready, alive;
  Fiber* current = nullptr;
  Barrier barrier;
  Warp warps[kMaxThreads / 32];
  void (*body)(const void*);
  const void* call;
  char* dynamic = nullptr;
  size_t dynamic_bytes = 0;
  std::vector<Array> arrays;  // static shared memory of this block
  std::vector<std::pair<const void*, size_t>> optins;
  std::string failure;
  uint32_t random = 1;

  uint32_t draw() {
    random ^= random << 13, random ^= random >> 17, random ^= random << 5;
    return random;
  }
  template <class V>
  void shuffle(V& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[draw() % i]);
  }
};
extern Machine machine;

inline bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

inline std::string text(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

// -- memory.cpp
void place_dynamic(size_t bytes);
void poison_shared();
size_t allowed_shared(const void* kernel);

}  // namespace simt
