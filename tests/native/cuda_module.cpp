// The CUDA kernels of the hashed linear passes on the host, on numpy arrays: what the contract suite is run against.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "native/cuda_host.h"

namespace py = pybind11;

namespace rdk::gpu {
namespace {

// fn(T{}) for float32, float16, or bfloat16 as uint16.
template <class Fn>
auto dispatch(const py::array& a, const Fn& fn) {
  const char kind = a.dtype().kind();
  if (kind == 'f' && a.itemsize() == 4) return fn(float{});
  if (kind == 'f' && a.itemsize() == 2) return fn(Half{});
  if (kind == 'u' && a.itemsize() == 2) return fn(BFloat16{});
  throw std::invalid_argument("array must be float32, float16 or uint16 (bfloat16)");
}

template <class T>
Strided<T> strided(const py::array& a) {
  return {static_cast<const T*>(a.data()), a.shape(0), a.shape(1), a.strides(0) / int64_t(sizeof(T)),
          a.strides(1) / int64_t(sizeof(T))};
}

py::array like(const py::array& a, std::vector<py::ssize_t> shape) {
  py::array made(a.dtype(), std::move(shape));
  std::memset(made.mutable_data(), 0xff, made.nbytes());
  return made;
}

Device device(size_t shared_limit) { return {shared_limit, nullptr}; }

Map map_of(int64_t seed, int64_t values, int64_t go, int64_t gi) { return Map(seed, values / (go * gi), go, gi); }

py::tuple fwd(const py::array& x, const py::array& bank, const py::object& bias, int64_t out, int64_t go, int64_t gi,
              int64_t seed, double scale, bool hashed_bias, bool tf32, size_t shared_limit) {
  py::array y = like(x, {x.shape(0), out});
  return dispatch(x, [&]<class T>(T) {
    const T* added = bias.is_none() ? nullptr : static_cast<const T*>(py::array(bias).data());
    const Output<T> to{
        static_cast<T*>(y.mutable_data()), nullptr, added, int(x.shape(0)), int(out), float(scale), hashed_bias};
    HostMemory memory;
    const Path path = product<T, Forward>(strided<T>(x), static_cast<const T*>(bank.data()), bank.size(),
                                          map_of(seed, bank.size(), go, gi), to, tf32, memory, device(shared_limit));
    return py::make_tuple(y, int(path));
  });
}

py::tuple bwd_x(const py::array& dy, const py::array& bank, int64_t in, int64_t go, int64_t gi, int64_t seed,
                double scale, bool tf32, size_t shared_limit) {
  py::array dx = like(dy, {dy.shape(0), in});
  return dispatch(dy, [&]<class T>(T) {
    const Output<T> to{
        static_cast<T*>(dx.mutable_data()), nullptr, nullptr, int(dy.shape(0)), int(in), float(scale), false};
    HostMemory memory;
    const Path path = product<T, InputGrad>(strided<T>(dy), static_cast<const T*>(bank.data()), bank.size(),
                                            map_of(seed, bank.size(), go, gi), to, tf32, memory, device(shared_limit));
    return py::make_tuple(dx, int(path));
  });
}

py::tuple bwd_bank(const py::array& dy, const py::array& x, int64_t slots, int64_t go, int64_t gi, int64_t seed,
                   double scale, bool hashed_bias, bool tf32, size_t shared_limit) {
  const int64_t values = slots * go * gi;
  py::array dbank = like(x, {values});
  return dispatch(x, [&]<class T>(T) {
    const BankOutput<T> to{static_cast<T*>(dbank.mutable_data()), values, float(scale)};
    HostMemory memory;
    const Path path = bank_grad<T>(strided<T>(dy), strided<T>(x), hashed_bias, map_of(seed, values, go, gi), to, tf32,
                                   memory, device(shared_limit));
    return py::make_tuple(dbank, int(path));
  });
}

// How the launches that follow are run (simt/runtime.h).
void schedule(int order, int cp_early, uint32_t seed) {
  simt::cfg.order = simt::cfg.block_order = order;
  simt::cfg.cp_early = cp_early;
  simt::cfg.seed = seed;
  simt::cfg.strict_exit = true;
}

}  // namespace
}  // namespace rdk::gpu

PYBIND11_MODULE(RDK_MODULE, m) {
  namespace gpu = rdk::gpu;
  constexpr size_t kA100 = 166912;  // bytes of shared memory that a kernel may opt in to
  using namespace py::literals;
  m.def("fwd", &gpu::fwd, "x"_a, "bank"_a, "bias"_a, "out"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "hashed_bias"_a,
        "tf32"_a = false, "shared_limit"_a = kA100);
  m.def("bwd_x", &gpu::bwd_x, "dy"_a, "bank"_a, "in_"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "tf32"_a = false,
        "shared_limit"_a = kA100);
  m.def("bwd_bank", &gpu::bwd_bank, "dy"_a, "x"_a, "slots"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "hashed_bias"_a,
        "tf32"_a = false, "shared_limit"_a = kA100);
  m.def("schedule", &gpu::schedule, "order"_a = 0, "cp_early"_a = 0, "seed"_a = 1);
}
