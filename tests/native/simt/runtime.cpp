// The threads of a block and who runs next; launches, barriers, the meetings of a warp's lanes.
#include "simt/runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/machine.h"

namespace simt {

Machine machine;

namespace {

const char* const kWaits[] = {"ready", "at a barrier", "in a warp collective", "done"};

void go(Context& from, Fiber& to, bool last = false) {
  machine.current = &to;
  threadIdx = to.id;
  where.thread = to.index;
  change(from, to.context, last);
}

// Ends the block, whatever its threads are at.
[[noreturn]] void to_main() {
  where.running = false;
  change(machine.current->context, machine.main, true);
  std::abort();
}

std::string deadlock() {
  std::string message = "deadlock:";
  for (State state : {State::Barrier, State::Meeting, State::Done}) {
    int count = 0;
    const Fiber* first = nullptr;
    for (int i = 0; i < machine.threads; ++i) {
      const Fiber& f = machine.fibers[i];
      if (f.state == state && !count++) first = &f;
    }
    if (!count) continue;
    message += " " + std::to_string(count) + " threads " + kWaits[int(state)];
    if (state != State::Done) message += " (thread " + std::to_string(first->index) + " at " + text(first->site) + ")";
    message += ",";
  }
  message.pop_back();
  return message;
}

Fiber& next() {
  for (;;) {
    if (machine.turn == machine.threads) {
      machine.turn = 0;
      if (cfg.order == 2) machine.shuffle(machine.order);
    }
    Fiber& f = machine.fibers[machine.order[machine.turn++]];
    if (f.state == State::Ready) return f;
  }
}

void wait(State state, const Site& site) {
  Fiber& me = *machine.current;
  me.state = state;
  me.site = site;
  if (!--machine.ready) fail(site, "%s", deadlock().c_str());
  go(me.context, next());
}

void wake(Fiber& f) {
  f.state = State::Ready;
  ++machine.ready;
}

void release_barrier() {
  Barrier& b = machine.barrier;
  b.result[where.barrier++ & 1] = b.votes;
  b.arrived = b.votes = 0;
  for (int i = 0; i < machine.threads; ++i) {
    if (machine.fibers[i].state == State::Barrier) wake(machine.fibers[i]);
  }
}

void leave() {
  Fiber& me = *machine.current;
  if (me.landed != me.copies.size()) fail(me.copies[me.landed].site, "exits with a cp.async never waited for");
  me.state = State::Done;
  --machine.ready;
  Barrier& b = machine.barrier;
  if (--machine.alive && b.arrived) {
    if (cfg.strict_exit) fail(b.site, "exits while thread %d waits at a barrier", b.first);
    if (b.arrived == machine.alive) release_barrier();
  }
  if (!machine.alive) to_main();
  if (!machine.ready) fail(Site(), "%s", deadlock().c_str());
  go(me.context, next(), true);
}

void entry() {
  begun(machine.main);
  try {
    machine.body(machine.call);
  } catch (const std::exception& e) {
    fail(Site(), "exception: %s", e.what());
  }
  leave();
  std::abort();
}

void run_block(dim3 block) {
  ++where.block;
  where.barrier = 0;
  std::fill(std::begin(where.warp_sync), std::end(where.warp_sync), 0);
  poison_shared();
  machine.barrier = {};
  for (Warp& warp : machine.warps) warp.open = 0;
  machine.ready = machine.alive = machine.threads;
  machine.turn = 0;
  for (int i = 0; i < machine.threads; ++i) {
    Fiber& f = machine.fibers[i];
    f.context = f.stack->begin(&entry);
    f.state = State::Ready;
    f.index = i;
    f.id = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    f.copies.clear();
    f.landed = 0;
    f.groups = 0;
    machine.order[i] = cfg.order == 1 ? machine.threads - 1 - i : i;
  }
  if (cfg.order == 2) machine.shuffle(machine.order);
  where.running = true;
  go(machine.main, next());
  where.running = false;
  trace::end_block();
}

void refuse(const std::string& why) { throw std::runtime_error("simt: " + why); }

void check_launch(dim3 grid, dim3 block, size_t smem, const void* kernel) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > kMaxThreads || block.z > 64) refuse("a block of " + std::to_string(threads) + " threads");
  if (!blocks || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  }
  if (smem > cfg.smem_limit) {
    refuse(std::to_string(smem) + " bytes of dynamic shared memory, the limit is " + std::to_string(cfg.smem_limit));
  }
  const size_t allowed = allowed_shared(kernel);
  if (smem > allowed) {
    refuse(std::to_string(smem) + " bytes of dynamic shared memory, " + std::to_string(allowed) +
           " allowed to this kernel: call smem_optin");
  }
  if (where.running) refuse("a launch inside a kernel");
}

}  // namespace

void fail(const Site& site, const char* format, ...) {
  static char message[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
  if (!where.running) throw std::runtime_error(std::string("simt: ") + message);
  machine.failure = std::string("simt: ") + message + " [thread " + std::to_string(where.thread) + ", block (" +
                    std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
                    ")" + (site.line() ? ", " + text(site) : "") + "]";
  to_main();
}

void run(dim3 grid, dim3 block, size_t smem, const void* kernel, void (*body)(const void*), const void* call) {
  check_launch(grid, block, smem, kernel);
  machine.threads = int(block.x * block.y * block.z);
  machine.order.resize(machine.threads);
  while (int(machine.fibers.size()) < machine.threads) {
    machine.fibers.emplace_back().stack = std::make_unique<Stack>();
  }
  machine.main = {};
  machine.body = body;
  machine.call = call;
  machine.failure.clear();
  machine.random = cfg.seed * 2654435761u | 1;
  place_dynamic(smem);
  where.launch_block = where.block + 1;
  blockDim = block;
  gridDim = grid;
  std::vector<uint64_t> order(uint64_t(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = cfg.block_order == 1 ? order.size() - 1 - i : i;
  if (cfg.block_order == 2) machine.shuffle(order);
  for (uint64_t at : order) {
    blockIdx = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
    run_block(block);
    if (!machine.failure.empty()) throw std::runtime_error(machine.failure);
  }
}

int barrier(bool vote, const Site& site) {
  Barrier& b = machine.barrier;
  if (!b.arrived) {
    b.site = site;
    b.first = where.thread;
  } else if (!same(b.site, site)) {
    fail(site, "divergent barrier: thread %d waits at %s", b.first, text(b.site).c_str());
  }
  b.votes += vote;
  const uint32_t epoch = where.barrier;
  if (++b.arrived == machine.alive) {
    release_barrier();
  } else {
    wait(State::Barrier, site);
  }
  return b.result[epoch & 1];
}

int lane() { return where.thread & 31; }

void meet(uint32_t mask, Finish finish, void* args, const Site& site) {
  const int me = lane(), w = where.thread >> 5;
  if (!(mask >> me & 1))
    fail(site, "a warp collective with mask %08x, which lacks the lane %d that calls it", mask, me);
  const int lanes = std::min(32, machine.threads - w * 32);
  if (lanes < 32 && mask >> lanes) fail(site, "mask %08x names lanes that this warp of %d has not", mask, lanes);
  Warp& warp = machine.warps[w];
  Meeting* m = nullptr;
  for (int i = 0; i < warp.open; ++i) {
    Meeting& other = warp.meetings[i];
    if (other.mask == mask) {
      m = &other;
    } else if (other.mask & mask) {
      fail(site, "mask %08x overlaps the mask %08x of lanes that wait at %s", mask, other.mask,
           text(other.site).c_str());
    }
  }
  if (!m) {
    m = &warp.meetings[warp.open++];
    m->mask = mask, m->arrived = 0, m->finish = finish, m->site = site, m->warp = w;
  } else if (m->finish != finish || !same(m->site, site)) {
    fail(site, "lanes of mask %08x meet another warp collective, at %s", mask, text(m->site).c_str());
  }
  m->args[me] = args;
  m->arrived |= 1u << me;
  if (m->arrived != mask) return wait(State::Meeting, site);
  finish(*m);
  for (uint32_t rest = mask & ~(1u << me); rest; rest &= rest - 1) wake(machine.fibers[w * 32 + __builtin_ctz(rest)]);
  *m = warp.meetings[--warp.open];
}

}  // namespace simt
