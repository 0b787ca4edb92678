// Shared memory and cp.async.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "simt/machine.h"

namespace simt {
namespace {

constexpr size_t kWithoutOptin = 48 << 10, kSharedSpace = 256 << 10;

}  // namespace

// The end of the dynamic shared memory is the end of what may be touched, to the byte.
void place_dynamic(size_t bytes) {
  if (!machine.dynamic) machine.dynamic = static_cast<char*>(std::aligned_alloc(1024, kSharedSpace));
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(machine.dynamic, kSharedSpace);
  __asan_poison_memory_region(machine.dynamic + bytes, kSharedSpace - bytes);
#endif
  machine.dynamic_bytes = bytes;
}

void poison_shared() {
  machine.arrays.clear();
  if (!machine.dynamic_bytes) return;
  std::memset(machine.dynamic, 0xff, machine.dynamic_bytes);
  trace::shared_region(machine.dynamic, machine.dynamic_bytes, "dynamic shared memory");
}

size_t allowed_shared(const void* kernel) {
  size_t allowed = kWithoutOptin;
  for (const auto& [who, bytes] : machine.optins) {
    if (who == kernel) allowed = std::max(allowed, bytes);
  }
  return allowed;
}

int smem_optin(const void* kernel, size_t bytes) {
  if (bytes > cfg.smem_limit) return 1;  // cudaErrorInvalidValue
  machine.optins.emplace_back(kernel, bytes);
  return 0;
}

void* dynamic_shared() { return machine.dynamic; }

void SharedArray::enter(void* data, size_t bytes, const char* name) {
  if (block == where.block) return;
  block = where.block;
  std::memset(data, 0xff, bytes);
  machine.arrays.push_back({data, bytes});
  trace::shared_region(data, bytes, name);
}

void check_aligned(const void* p, size_t bytes, const char* what, const Site& site) {
  if (uintptr_t(p) % bytes)
    fail(site, "%s: misaligned address, %zu past a multiple of %zu", what, uintptr_t(p) % bytes, bytes);
}

void check_shared(const void* p, size_t bytes, const char* what, const Site& site) {
  check_aligned(p, bytes, what, site);
  const auto within = [&](const void* data, size_t size) {
    return uintptr_t(p) >= uintptr_t(data) && uintptr_t(p) + bytes <= uintptr_t(data) + size;
  };
  if (within(machine.dynamic, machine.dynamic_bytes)) return;
  for (const Array& a : machine.arrays) {
    if (within(a.data, a.bytes)) return;
  }
  fail(site, "%s: not in the block's shared memory", what);
}

void cp_async16(void* smem, const void* gmem, int bytes, const Site& site) {
  if (bytes < 0 || bytes > 16) fail(site, "cp.async: %d of 16 bytes", bytes);
  check_shared(smem, 16, "cp.async, destination", site);
  check_aligned(gmem, 16, "cp.async, source", site);
  Copy copy{smem, bytes, machine.current->groups, site, {}};
  std::memcpy(copy.data, gmem, size_t(bytes));
  if (bytes) trace::access(gmem, bytes, trace::Op::CopyRead, site);
  trace::access(smem, 16, trace::Op::Pending, site);
  if (cfg.cp_early == 1 || (cfg.cp_early == 2 && machine.draw() >> 31)) std::memcpy(smem, copy.data, 16);
  machine.current->copies.push_back(copy);
}

void cp_async_commit() { ++machine.current->groups; }

void cp_async_wait(int groups) {
  Fiber& me = *machine.current;
  for (; me.landed < me.copies.size(); ++me.landed) {
    const Copy& copy = me.copies[me.landed];
    if (copy.group >= me.groups - groups) return;
    std::memcpy(copy.to, copy.data, 16);
    trace::access(copy.to, 16, trace::Op::CopyWrite, copy.site);
  }
  me.copies.clear();
  me.landed = 0;
}

}  // namespace simt
