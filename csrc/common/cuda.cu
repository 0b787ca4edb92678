// What the CUDA library shares between operations.
#include <torch/csrc/stable/library.h>

#include <array>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>

#include "common/cuda_call.h"

namespace rdk::gpu {
namespace {

thread_local bool tf32 = false;

void allow_tf32(bool allowed) { tf32 = allowed; }

}  // namespace

bool tf32_allowed() { return tf32; }

size_t shared_limit(int device) {
  constexpr int kDevices = 64;
  static std::array<std::atomic<int>, kDevices> known{};  // asking takes microseconds
  if (device < kDevices && known[device]) return known[device];
  int bytes = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) throw std::runtime_error(std::string("rdkernels: ") + cudaGetErrorString(error));
  if (device < kDevices) known[device] = bytes;
  return bytes;
}

void Call::sort(const int* keys, int count, const int** sorted, const int64_t** from) {
  const Tensor self = torch::stable::from_blob(const_cast<int*>(keys), {count}, {1}, like_.device(), ScalarType::Int);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(self),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t(0)), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  kept_.push_back(torch::stable::detail::to<Tensor>(stack[0]));
  *sorted = static_cast<const int*>(kept_.back().const_data_ptr());
  kept_.push_back(torch::stable::detail::to<Tensor>(stack[1]));
  *from = static_cast<const int64_t*>(kept_.back().const_data_ptr());
}

}  // namespace rdk::gpu

STABLE_TORCH_LIBRARY_IMPL(rdkernels_native, CompositeExplicitAutograd, m) {
  m.impl("allow_tf32", TORCH_BOX(&rdk::gpu::allow_tf32));
}
