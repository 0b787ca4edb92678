// The CUDA kernels of the hashed linear passes on the host, on numpy arrays: what the contract suite is run against.
#include "cuda_host.h"
#include "simt/python.h"

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

// The array's own memory, strides and all.
template <class T>
Strided<T> strided(const py::array& a, const char* name) {
  py::ssize_t last = 0;
  for (int axis = 0; axis < 2; ++axis) last += (std::max<py::ssize_t>(a.shape(axis), 1) - 1) * a.strides(axis);
  if (a.size()) simt::trace::region(a.data(), last + a.itemsize(), name);
  return {static_cast<const T*>(a.data()), a.shape(0), a.shape(1), a.strides(0) / int64_t(sizeof(T)),
          a.strides(1) / int64_t(sizeof(T))};
}

template <class T>
const T* values(const py::array& a, const char* name) {
  simt::trace::region(a.data(), a.nbytes(), name);
  return static_cast<const T*>(a.data());
}

py::array like(const py::array& a, std::vector<py::ssize_t> shape, const char* name) {
  py::ssize_t size = a.itemsize();
  for (const py::ssize_t n : shape) size *= n;
  void* const data = Bytes(size, name).release();
  return py::array(a.dtype(), std::move(shape), data, py::capsule(data, &std::free));
}

Map map_of(int64_t seed, int64_t values, int64_t go, int64_t gi) { return Map(seed, values / (go * gi), go, gi); }

py::tuple fwd(const py::array& x, const py::array& bank, const py::object& bias, int64_t out, int64_t go, int64_t gi,
              int64_t seed, double scale, bool hashed_bias, bool tf32, size_t shared_limit) {
  py::array y = like(x, {x.shape(0), out}, "y");
  return dispatch(x, [&]<class T>(T) {
    const T* added = bias.is_none() ? nullptr : values<T>(py::array(bias), "bias");
    const Output<T> to{
        static_cast<T*>(y.mutable_data()), nullptr, added, int(x.shape(0)), int(out), float(scale), hashed_bias};
    HostMemory memory;
    const Path path = product<T, Forward>(strided<T>(x, "x"), values<T>(bank, "bank"), bank.size(),
                                          map_of(seed, bank.size(), go, gi), to, tf32, memory, {shared_limit, nullptr});
    return py::make_tuple(y, int(path));
  });
}

py::tuple bwd_x(const py::array& dy, const py::array& bank, int64_t in, int64_t go, int64_t gi, int64_t seed,
                double scale, bool tf32, size_t shared_limit) {
  py::array dx = like(dy, {dy.shape(0), in}, "dx");
  return dispatch(dy, [&]<class T>(T) {
    const Output<T> to{
        static_cast<T*>(dx.mutable_data()), nullptr, nullptr, int(dy.shape(0)), int(in), float(scale), false};
    HostMemory memory;
    const Path path =
        product<T, InputGrad>(strided<T>(dy, "dy"), values<T>(bank, "bank"), bank.size(),
                              map_of(seed, bank.size(), go, gi), to, tf32, memory, {shared_limit, nullptr});
    return py::make_tuple(dx, int(path));
  });
}

py::tuple bwd_bank(const py::array& dy, const py::array& x, int64_t slots, int64_t go, int64_t gi, int64_t seed,
                   double scale, bool hashed_bias, bool tf32, size_t shared_limit) {
  const int64_t size = slots * go * gi;
  py::array dbank = like(x, {size}, "dbank");
  return dispatch(x, [&]<class T>(T) {
    const BankOutput<T> to{static_cast<T*>(dbank.mutable_data()), size, float(scale)};
    HostMemory memory;
    const Path path = bank_grad<T>(strided<T>(dy, "dy"), strided<T>(x, "x"), hashed_bias, map_of(seed, size, go, gi),
                                   to, tf32, memory, {shared_limit, nullptr});
    return py::make_tuple(dbank, int(path));
  });
}

}  // namespace
}  // namespace rdk::gpu

PYBIND11_MODULE(SIMT_MODULE, m) {
  simt::bind(m);
  namespace gpu = rdk::gpu;
  using namespace py::literals;
  m.def("fwd", &gpu::fwd, "x"_a, "bank"_a, "bias"_a, "out"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "hashed_bias"_a,
        "tf32"_a = false, "shared_limit"_a = gpu::kA100Shared);
  m.def("bwd_x", &gpu::bwd_x, "dy"_a, "bank"_a, "in_"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "tf32"_a = false,
        "shared_limit"_a = gpu::kA100Shared);
  m.def("bwd_bank", &gpu::bwd_bank, "dy"_a, "x"_a, "slots"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a, "hashed_bias"_a,
        "tf32"_a = false, "shared_limit"_a = gpu::kA100Shared);
}
