// Hashed linear layer on CUDA: torch's tensors to launches, the members' lists that are kept, and the registration.
#include <list>
#include <mutex>
#include <tuple>

#include "common/cuda_call.h"
#include "hashed_linear/checks.h"
#include "hashed_linear/cuda_passes.cuh"
#include "hashed_linear/members.cuh"

namespace rdk::gpu {

RDK_PASSES(extern, BFloat16)
RDK_PASSES(extern, Half)
RDK_PASSES(extern, float)

namespace {

thread_local Path last_path = Path::none;

// Members' lists depend on the map alone and cost a sort: the last used are kept, for the stream that made them.
class KeptMembers {
 public:
  using Key = std::tuple<int, cudaStream_t, uint32_t, uint32_t, int, int, int, int, int, int>;

  bool find(const Key& key, Members* members) {
    const std::lock_guard lock(mutex_);
    for (auto entry = kept_.begin(); entry != kept_.end(); ++entry) {
      if (entry->key == key) {
        kept_.splice(kept_.begin(), kept_, entry);
        *members = entry->members;
        return true;
      }
    }
    return false;
  }
  void add(const Key& key, const Members& members, std::vector<Tensor> memory) {
    const std::lock_guard lock(mutex_);
    int64_t bytes = 0;
    for (const Tensor& t : memory) bytes += t.numel() * t.element_size();
    kept_.push_front({key, members, std::move(memory), bytes});
    for (bytes_ += bytes; bytes_ > kMost && kept_.size() > 1; kept_.pop_back()) bytes_ -= kept_.back().bytes;
  }

 private:
  static constexpr int64_t kMost = int64_t(64) << 20;  // bytes, over all devices
  struct Entry {
    Key key;
    Members members;
    std::vector<Tensor> memory;
    int64_t bytes;
  };
  std::mutex mutex_;
  std::list<Entry> kept_;
  int64_t bytes_ = 0;
};

KeptMembers& kept_members() {
  static auto* const kept = new KeptMembers;  // never destroyed: torch's allocator is gone by then
  return *kept;
}

class Memory final : public Workspace {
 public:
  explicit Memory(Call& call) : call_(call) {}

  void* take(int64_t bytes) override { return call_.take(bytes); }
  void sort(const int* keys, int count, const int** sorted, const int64_t** from) override {
    call_.sort(keys, count, sorted, from);
  }
  Members members(const Map& map, const Region& where, const Device& device) override {
    // an element's list would take as much memory as the dense matrix
    if (map.element() || call_.capturing()) return members_of(map, where, *this, device);
    const KeptMembers::Key key{call_.device(), call_.stream(), map.seed, map.slots,  map.go_shift,
                               map.gi_shift,   where.p0,       where.q0, where.down, where.across};
    Members members;
    if (kept_members().find(key, &members)) return members;
    const size_t mark = call_.taken();
    members = members_of(map, where, *this, device);
    std::vector<Tensor> memory = call_.release(mark);
    memory.erase(memory.begin(), memory.end() - 2);  // but the list's two arrays, the last: the sort's
    kept_members().add(key, members, std::move(memory));
    return members;
  }

 private:
  Call& call_;
};

template <class T>
Strided<T> strided(const Tensor& t) {
  return {data<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

// The bank as whole aligned vectors can be read from it.
Tensor aligned(const Tensor& bank) {
  const Tensor values = as_contiguous(bank);
  return reinterpret_cast<uintptr_t>(values.const_data_ptr()) % 16 ? torch::stable::clone(values) : values;
}

void check_sizes(const char* op, std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size < (int64_t(1) << 31) - 256, op,
                    ": the CUDA kernels take at most 2^31 - 257 rows, inputs or outputs, got ", size);
  }
}

Tensor fwd(const Tensor& x, const Tensor& bank, const std::optional<Tensor>& bias, int64_t out_features, int64_t go,
           int64_t gi, int64_t seed, double scale, bool hashed_bias) {
  const char* op = "hashed_linear_fwd";
  const Map map = checked_forward(op, x, bank, bias, out_features, go, gi, seed);
  check_sizes(op, {x.size(0), x.size(1), x.stride(0), out_features});
  last_path = Path::none;
  Call call(x);
  Memory memory(call);
  const Tensor values = aligned(bank);
  const std::optional<Tensor> added = bias ? std::optional(as_contiguous(*bias)) : std::nullopt;
  Tensor y = torch::stable::new_empty(x, {x.size(0), out_features});
  if (y.numel() == 0) return y;
  dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
    const Output<T> out{static_cast<T*>(y.mutable_data_ptr()),
                        nullptr,
                        added ? data<T>(*added) : nullptr,
                        int(x.size(0)),
                        int(out_features),
                        float(scale),
                        hashed_bias};
    last_path = product<T, Forward>(strided<T>(x), data<T>(values), bank.numel(), map, out, tf32_allowed(), memory,
                                    {shared_limit(call.device()), call.stream()});
  });
  return y;
}

Tensor bwd_x(const Tensor& dy, const Tensor& bank, int64_t in_features, int64_t go, int64_t gi, int64_t seed,
             double scale) {
  const char* op = "hashed_linear_bwd_x";
  const Map map = checked_map(op, dy, bank.numel(), in_features, go, gi, seed);
  check_like(op, "bank", bank, dy);
  check_sizes(op, {dy.size(0), dy.size(1), dy.stride(0), in_features});
  last_path = Path::none;
  Call call(dy);
  Memory memory(call);
  const Tensor values = aligned(bank);
  Tensor dx = torch::stable::new_empty(dy, {dy.size(0), in_features});
  if (dx.numel() == 0) return dx;
  dispatch_dtype<BFloat16, Half>(op, dy, [&]<class T>(T) {
    const Output<T> out{static_cast<T*>(dx.mutable_data_ptr()),
                        nullptr,
                        nullptr,
                        int(dy.size(0)),
                        int(in_features),
                        float(scale),
                        false};
    last_path = product<T, InputGrad>(strided<T>(dy), data<T>(values), bank.numel(), map, out, tf32_allowed(), memory,
                                      {shared_limit(call.device()), call.stream()});
  });
  return dx;
}

Tensor bwd_bank(const Tensor& dy, const Tensor& x, int64_t slots, int64_t go, int64_t gi, int64_t seed, double scale,
                bool hashed_bias) {
  const char* op = "hashed_linear_bwd_bank";
  const int64_t size = slots * go * gi;
  const Map map = checked_map(op, x, size, dy.size(1), go, gi, seed);
  check_like(op, "dy", dy, x);
  check_rows(op, dy, x);
  check_sizes(op, {x.size(0), x.size(1), x.stride(0), dy.size(1), dy.stride(0)});
  last_path = Path::none;
  Call call(x);
  Memory memory(call);
  Tensor dbank = torch::stable::new_empty(x, {size});
  dispatch_dtype<BFloat16, Half>(op, x, [&]<class T>(T) {
    last_path = bank_grad<T>(strided<T>(dy), strided<T>(x), hashed_bias, map,
                             BankOutput<T>{static_cast<T*>(dbank.mutable_data_ptr()), size, float(scale)},
                             tf32_allowed(), memory, {shared_limit(call.device()), call.stream()});
  });
  return dbank;
}

// Which kernel the calling thread's last call took: for tests.
int64_t hashed_linear_cuda_path() { return int64_t(last_path); }

}  // namespace
}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CUDA, m) {
  m.impl("hashed_linear_fwd", TORCH_BOX(&rdk::gpu::fwd));
  m.impl("hashed_linear_bwd_x", TORCH_BOX(&rdk::gpu::bwd_x));
  m.impl("hashed_linear_bwd_bank", TORCH_BOX(&rdk::gpu::bwd_bank));
}
STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CompositeExplicitAutograd, m) {
  m.impl("hashed_linear_cuda_path", TORCH_BOX(&rdk::gpu::hashed_linear_cuda_path));
}
