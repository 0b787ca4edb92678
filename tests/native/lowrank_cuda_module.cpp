// The CUDA kernels of the low-rank chains on the host, on numpy arrays: what the contract suites are run against.
#include "cp_conv2d/depthwise.cuh"
#include "cuda_host.h"
#include "simt/python.h"
#include "tucker_conv2d/core.cuh"

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

// An array [N, C, H, W]: its own memory, strides and all.
template <class T>
Map4<T> map4(const py::array& a, const char* name) {
  py::ssize_t last = 0;
  for (int axis = 0; axis < 4; ++axis) last += (std::max<py::ssize_t>(a.shape(axis), 1) - 1) * a.strides(axis);
  if (a.size()) simt::trace::region(a.data(), last + a.itemsize(), name);
  const auto stride = [&](int axis) { return a.strides(axis) / int64_t(sizeof(T)); };
  return {static_cast<T*>(const_cast<void*>(a.data())), stride(0), stride(1), stride(2), stride(3)};
}
template <class T>
Maps<T> maps(const py::array& a, const char* name) {
  return {map4<T>(a, name), a.shape(0), a.shape(1), a.shape(2), a.shape(3)};
}

template <class T>
const T* values(const py::array& a, const char* name) {
  simt::trace::region(a.data(), a.nbytes(), name);
  return static_cast<const T*>(a.data());
}

// Into y: the chain of `op`, "lines", "cp" or "tucker", with its factors in their order. Returns what was chosen.
py::tuple run(const std::string& op, const py::array& y, const py::array& x, const std::vector<py::array>& factors,
              const py::object& bias, const py::object& residual, const std::vector<int>& geometry, int activation,
              bool tf32, size_t shared_limit) {
  const Chosen chosen = dispatch(x, [&]<class T>(T) {
    HostMemory memory;
    const Device device{shared_limit, nullptr};
    std::vector<const T*> f;
    for (const py::array& a : factors) f.push_back(values<T>(a, "factor"));
    const auto common = [&](auto p) {
      p.x = maps<const T>(x, "x"), p.y = maps<T>(y, "y");
      if (!bias.is_none()) p.bias = values<T>(py::array(bias), "bias");
      if (!residual.is_none()) p.residual = map4<const T>(py::array(residual), "residual");
      p.activation = Activation(activation);
      p.geometry = {geometry[0], geometry[1], geometry[2], geometry[4], geometry[6], geometry[7]};
      return p;
    };
    if (op == "lines") {
      auto p = common(LinesProblem<T>{});
      p.vertical = f[0], p.horizontal = f[1];
      p.ranks = factors[0].shape(0), p.kh = factors[0].shape(2), p.kw = factors[1].shape(2);
      return lines(p, tf32, memory, device);
    }
    if (op == "cp") {
      auto p = common(DepthwiseProblem<T>{});
      p.inner = f[0], p.vertical = f[1], p.horizontal = f[2], p.outer = f[3];
      p.ranks = factors[0].shape(0), p.kh = factors[1].shape(1), p.kw = factors[2].shape(1);
      return cp(p, tf32, memory, device);
    }
    if (op == "tucker") {
      auto p = common(CoreProblem<T>{});
      p.inner = f[0], p.core = f[1], p.outer = f[2];
      p.inner_ranks = factors[0].shape(0), p.outer_ranks = factors[1].shape(0);
      p.kh = factors[1].shape(2), p.kw = factors[1].shape(3);
      return tucker(p, tf32, memory, device);
    }
    throw std::invalid_argument("no chain " + op);
  });
  return py::make_tuple(chosen.tile_h, chosen.tile_w, chosen.segment, chosen.groups);
}

}  // namespace
}  // namespace rdk::gpu

PYBIND11_MODULE(SIMT_MODULE, m) {
  simt::bind(m);
  using namespace py::literals;
  m.def("run", &rdk::gpu::run, "op"_a, "y"_a, "x"_a, "factors"_a, "bias"_a, "residual"_a, "geometry"_a, "activation"_a,
        "tf32"_a = false, "shared_limit"_a = rdk::gpu::kA100Shared);
}
