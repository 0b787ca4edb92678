// The controls on numpy arrays; uint16 stands for bfloat16.
#include "simt/python.h"

#include "controls.cu"

namespace py = pybind11;

namespace rdk::gpu {
namespace {

using simt::DeviceArray;

Sizes sizes(const py::array& a, const py::array& c) { return {int(c.shape(0)), int(c.shape(1)), int(a.shape(1))}; }

py::tuple run_sgemm_on(const py::array& a, const py::array& b, const py::array& c, const py::array& sums, int bug) {
  DeviceArray da(a, "A"), db(b, "B"), dc(c, "C"), ds(sums, "row sums");
  run_sgemm(da.get<float>(), db.get<float>(), dc.get<float>(), ds.get<float>(), sizes(a, c), bug, nullptr);
  return py::make_tuple(dc.back(), ds.back());
}

py::array run_tgemm_on(const py::array& a, const py::array& b, const py::array& c, bool trans, int bug) {
  DeviceArray da(a, "A"), db(b, "B"), dc(c, "C");
  const auto run = [&]<class T, bool kTrans>(T) {
    run_tgemm<T, kTrans>(da.get<T>(), db.get<T>(), dc.get<float>(), sizes(a, c), bug, nullptr);
  };
  const bool half = a.dtype().kind() == 'f' && a.itemsize() == 2;
  if (a.itemsize() == 4)
    run.operator()<float, false>(0.0f);
  else if (half && trans)
    run.operator()<Half, true>({});
  else if (half)
    run.operator()<Half, false>({});
  else if (trans)
    run.operator()<BFloat16, true>({});
  else
    run.operator()<BFloat16, false>({});
  return dc.back();
}

// What a launch must be refused for, one each.
__global__ void fault(int which, const float* from) {
  RDK_DYN_SMEM(float, smem);
  const int tid = int(threadIdx.x), lane = tid % 32;
  uint32_t r[4];
  switch (which) {
    case 0:
      return;
    case 1:
      return tid < 5 ? __syncthreads() : __syncthreads();
    case 2:
      return void(__ballot_sync(1u, 1));
    case 3:
      return __syncwarp(lane < 8 ? 0x1ffu : 0xffffff80u);
    case 4:
      return lane < 8 ? __syncwarp() : void(__ballot_sync(0xffffffffu, 1));
    case 5:
      return void(__shfl_xor_sync(0xffu << lane / 8 * 8, lane, 8));
    case 6:
      return ldmatrix_x4(r, smem + lane * 4 + 1);
    case 7:
      return ldmatrix_x4(r, from);
    case 8:
      return ldmatrix_x4(r, smem + lane * 8 - 4);
    case 9:
      return cp_async16(smem + tid * 4, from, 16);
    case 10:
      return cp_async16(smem + tid * 4, from, 16), cp_async_commit(), cp_async_wait<1>();
    case 11:
      return cp_async16(smem + tid * 4, from, 20);
    case 12:
      return void(load16(from + 1));
    case 13:
      return tid ? __syncthreads() : void();
    default:
      __trap();
  }
}
void run_fault(int which, int threads, size_t smem) {
  simt::DeviceMemory from(64, "from");
  RDK_LAUNCH((fault), dim3(1), dim3(unsigned(threads)), smem, nullptr, which, from.get<float>());
}
int allow_shared(size_t bytes) { return smem_optin(fault, bytes); }

// Neighbours exchange a value by shared memory, with what orders the two by `sync`: nothing, a warp's sync, a barrier.
__global__ void exchange(int* data, int distance, int sync) {
  RDK_SHARED(int, shared, 64);
  const int tid = int(threadIdx.x);
  shared[tid] = data[tid];
  if (sync == 1) __syncwarp();
  if (sync == 2) __syncthreads();
  data[tid] = shared[tid ^ distance];
}
py::array run_exchange(const py::array& data, int distance, int sync) {
  DeviceArray on(data, "data");
  RDK_LAUNCH((exchange), dim3(1), dim3(64), 0, nullptr, on.get<int>(), distance, sync);
  return on.back();
}

// A request of each thread at `stride` elements of 4, 8 or 16 bytes, of global memory and of shared.
template <class V>
__global__ void strided(const V* from, V* to, int stride) {
  RDK_DYN_SMEM(V, smem);
  smem[threadIdx.x * stride] = from[threadIdx.x * stride];
  __syncthreads();
  to[threadIdx.x] = smem[threadIdx.x * stride];
}
void run_strided(int bytes, int stride) {
  const size_t size = size_t(32 * stride * bytes);
  simt::DeviceMemory from(size, "from"), to(size_t(32 * bytes), "to");
  const auto run = [&]<class V>(V) {
    RDK_LAUNCH((strided<V>), dim3(1), dim3(32), size, nullptr, from.get<V>(), to.get<V>(), stride);
  };
  bytes == 4 ? run(0.0f) : bytes == 8 ? run(0.0) : run((unsigned __int128)(0));
}

}  // namespace
}  // namespace rdk::gpu

PYBIND11_MODULE(SIMT_MODULE, m) {
  simt::bind(m);
  m.def("sgemm", &rdk::gpu::run_sgemm_on);
  m.def("tgemm", &rdk::gpu::run_tgemm_on);
  m.def("fault", &rdk::gpu::run_fault);
  m.def("allow_shared", &rdk::gpu::allow_shared);
  m.def("exchange", &rdk::gpu::run_exchange);
  m.def("strided", &rdk::gpu::run_strided);
}
