// Below the op boundary: each kernel by name, its tasks in pieces of any size and any order.
#pragma once

#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "hashed_linear/bank_grad.h"
#include "hashed_linear/few_rows.h"
#include "hashed_linear/many_rows.h"

namespace rdk {

struct Schedule {
  int64_t piece = 0;     // tasks per call; 0: all in one
  uint32_t shuffle = 0;  // seed of the order of the pieces; 0: as they come

  template <class Fn>
  void operator()(int64_t tasks, const Fn& fn) const {
    const int64_t size = piece ? piece : std::max<int64_t>(tasks, 1);
    std::vector<int64_t> order(ceil_div(tasks, size));
    std::iota(order.begin(), order.end(), 0);
    if (shuffle) std::shuffle(order.begin(), order.end(), std::mt19937(shuffle));
    for (int64_t at : order) fn(at * size, std::min(tasks, (at + 1) * size));
  }
};

// y = scale * a V^T + bias, and scale * a V for the two gradients.
template <class T>
void run_product(const std::string& kernel, const Map& map, const View<T>& a, const T* bank, const Output<T>& y,
                 const Schedule& schedule) {
  const auto few = [&](const auto& k, int64_t limit) {
    if (y.rows < 1 || y.rows > limit) throw std::invalid_argument(kernel + ": too many rows, or none");
    schedule(k.tasks(), [&](int64_t first, int64_t last) { k.run(first, last); });
  };
  const auto many = [&]<class Pass>(Pass) {
    const ManyRows<T> k{map, a, bank, y};
    schedule(k.tasks(), [&](int64_t first, int64_t last) { k.template run<Pass>(first, last); });
  };
  if (kernel == "few_rows") return few(FewRows<T>{map, a, bank, y}, kFewRows);
  if (kernel == "few_rows_grad") return few(FewRowsInputGrad<T>{map, a, bank, y}, kFewGradRows);
  if (kernel == "many_rows") return many(ForwardPass{});
  if (kernel == "many_rows_grad") return many(InputGradPass{});
  throw std::invalid_argument("no kernel " + kernel);
}

template <class T>
void run_bank_grad(const Map& map, const View<T>& dy, const View<T>& x, float scale, T* out, int64_t numel,
                   const Schedule& schedule) {
  BankGrad<T> k(map, dy, x, scale, out, numel);
  std::vector<float> workspace(k.workspace(), std::numeric_limits<float>::quiet_NaN());
  schedule(k.tasks(), [&](int64_t first, int64_t last) { k.run(first, last, workspace.data()); });
}

}  // namespace rdk
