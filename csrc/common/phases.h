// Two lots of tasks in one parallel region, the second after all of the first: tasks are claimed in order, so whoever
// waits waits for tasks that running threads have claimed.
#pragma once

#include <atomic>
#include <cstdint>

namespace rdk {

class Phases {
 public:
  Phases(int64_t first, int64_t second) : first_(first), total_(first + second) {}

  // What each thread of the region does, until nothing is left.
  template <class First, class Second>
  void work(const First& one, const Second& two) {
    for (int64_t i; (i = claimed_.fetch_add(1, std::memory_order_relaxed)) < total_;) {
      if (i < first_) {
        const Done done{*this};
        one(i);
      } else {
        while (done_.load(std::memory_order_acquire) < first_) pause();
        two(i - first_);
      }
    }
  }

 private:
  struct Done {  // also where the task throws: nobody waits for it in vain
    Phases& phases;
    ~Done() { phases.done_.fetch_add(1, std::memory_order_release); }
  };
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t first_, total_;
  std::atomic<int64_t> claimed_{0}, done_{0};
};

}  // namespace rdk
