// The test module: the C++ map, the vector functions and every kernel on numpy arrays; uint16 stands for bfloat16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "run.h"

namespace py = pybind11;

namespace rdk {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

template <class T>
py::dtype dtype_of() {
  return py::dtype(std::is_same_v<T, float> ? "float32" : std::is_same_v<T, Half> ? "float16" : "uint16");
}

template <class Fn>
py::array dispatch(const py::array& a, const Fn& fn) {
  if (a.dtype().is(dtype_of<float>())) return fn(float{});
  if (a.dtype().is(dtype_of<Half>())) return fn(Half{});
  if (a.dtype().is(dtype_of<BFloat16>())) return fn(BFloat16{});
  throw py::type_error("expected float32, float16 or uint16 (bfloat16)");
}

template <class T>
const T* data(const py::array& a) {
  if (!a.dtype().is(dtype_of<T>())) throw py::type_error("mixed dtypes");
  return static_cast<const T*>(a.data());
}

template <class T>
View<T> view(const py::array& a, bool ones = false) {
  if (a.ndim() != 2) throw py::value_error("expected a matrix");
  return {data<T>(a), a.shape(0), a.shape(1), a.strides(0) / a.itemsize(), a.strides(1) / a.itemsize(), ones};
}

// All bits set: a NaN in every dtype.
template <class T>
py::array poisoned(std::vector<py::ssize_t> shape) {
  py::array a(dtype_of<T>(), shape);
  std::memset(a.mutable_data(), 0xff, size_t(a.nbytes()));
  return a;
}

void to_memory(uint32_t* p, const U16& v) { std::memcpy(p, &v, sizeof v); }

// The map by the vector code of the kernels, its lanes along outputs ("rows") or along inputs ("columns").
py::tuple index_and_sign(int64_t out, int64_t in, int64_t slots, int64_t go, int64_t gi, int64_t seed,
                         const std::string& lanes) {
  const Map map(seed, slots, go, gi);
  py::array_t<int64_t> index({out, in});
  py::array_t<int8_t> sign({out, in});
  const auto put = [&](int64_t o, int64_t i, int64_t at, bool minus) {
    if (o >= out || i >= in) return;
    index.mutable_at(o, i) = at;
    sign.mutable_at(o, i) = minus ? -1 : 1;
  };
  const auto put_vector = [&](int64_t o, int64_t i, uint32_t vector, uint32_t aux) {
    alignas(64) uint32_t minus[kVec];
    to_memory(minus, sign_lanes16(aux));
    for (int l = 0; l < kVec; ++l) put(o, i + l, int64_t(vector) * kVec + l, minus[l] == kSignBit);
  };
  const auto put_elements = [&](int64_t o, int64_t i, int64_t o_step, int64_t i_step, const U16& h) {
    alignas(64) uint32_t slot[kVec], hash[kVec];
    to_memory(hash, h);
    to_memory(slot, map16([&](int r) { return mulhi(h.r[r], map.slots); }));
    for (int l = 0; l < kVec; ++l) put(o + l * o_step, i + l * i_step, slot[l], hash[l] & 1);
  };
  if (lanes == "rows") {
    for (int64_t o = 0; o < out; o += kVec) {
      const U16 prefix = row_prefixes(map, uint32_t(o));
      for (int64_t i = 0; i < in; i += map.element() ? 1 : kVec) {
        if (map.element()) {
          const uint32_t column = uint32_t(i) * kPrime3;
          put_elements(o, i, 1, 0, map16([&](int r) { return hash_finish<U>(prefix.r[r] + column); }));
        } else {
          Places at;
          place_rows(map, prefix, uint32_t(o), uint32_t(i), &at);
          for (int j = 0; j < kVec; ++j) put_vector(o + j, i, at.vector[j], at.aux[j]);
        }
      }
    }
  } else {
    for (int64_t o = 0; o < out; ++o) {
      const uint32_t prefix = hash_prefix<uint32_t>(uint32_t(o) >> map.go_shift, map.seed);
      const uint32_t inner = (uint32_t(o) & map.go_mask()) << (map.element() ? 0 : map.row_shift());
      for (int64_t i = 0; i < in; i += map.element() ? kVec : kVec * kVec) {
        if (map.element()) {
          const U16 q = iota16(uint32_t(i));
          put_elements(o, i, 0, 1, map16([&](int r) { return hash_finish<U>(q.r[r] * kPrime3 + prefix); }));
        } else {
          alignas(64) uint32_t vector[kVec], row[kVec], aux[kVec];
          place_vectors(map, prefix, uint32_t(i / kVec), vector, row, aux);
          for (int j = 0; j < kVec; ++j) put_vector(o, i + j * kVec, vector[j] + (row[j] ^ inner), aux[j]);
        }
      }
    }
  }
  return py::make_tuple(index, sign);
}

// V in fp32 as the panels of a pass hold it: strips of sixteen columns, depth first.
template <class Pass>
py::array panels(const py::array& bank, int64_t columns, int64_t depth, int64_t slots, int64_t go, int64_t gi,
                 int64_t seed) {
  return dispatch(bank, [&]<class T>(T) {
    const Map map(seed, slots, go, gi);
    py::array_t<float> v({depth, columns});
    std::vector<float> strip(kDepth * kVec);
    for (int64_t c = 0; c < columns; c += kVec) {
      for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
        const int64_t n = std::min(kDepth, depth - k0), cut = std::min<int64_t>(kVec, columns - c);
        Pass::decode_strip(data<T>(bank), map, uint32_t(c), uint32_t(k0), n, strip.data());
        for (int64_t k = 0; k < n; ++k) std::copy_n(&strip[k * kVec], cut, v.mutable_data(k0 + k, c));
      }
    }
    return py::array(v);
  });
}

py::array product(const std::string& kernel, const py::array& a, const py::array& bank, int64_t cols, int64_t slots,
                  int64_t go, int64_t gi, int64_t seed, double scale, const std::optional<py::array>& bias, bool ones,
                  int64_t piece, uint32_t shuffle) {
  return dispatch(a, [&]<class T>(T) {
    py::array y = poisoned<T>({a.shape(0), cols});
    const Output<T> out{static_cast<T*>(y.mutable_data()), a.shape(0), cols, float(scale),
                        bias ? data<T>(*bias) : nullptr};
    run_product(kernel, Map(seed, slots, go, gi), view<T>(a, ones), data<T>(bank), out, {piece, shuffle});
    return y;
  });
}

py::array bank_grad(const py::array& dy, const py::array& x, int64_t slots, int64_t go, int64_t gi, int64_t seed,
                    double scale, bool ones, int64_t piece, uint32_t shuffle) {
  return dispatch(x, [&]<class T>(T) {
    const int64_t numel = slots * go * gi;
    py::array out = poisoned<T>({numel});
    run_bank_grad(Map(seed, slots, go, gi), view<T>(dy), view<T>(x, ones), float(scale),
                  static_cast<T*>(out.mutable_data()), numel, {piece, shuffle});
    return out;
  });
}

int64_t bank_grad_tasks(int64_t rows, int64_t out, int64_t in, int64_t slots) {
  const View<float> dy{nullptr, rows, out, out, 1}, x{nullptr, rows, in, in, 1};
  return BankGrad<float>(Map(0, slots, 1, 1), dy, x, 1.0f, nullptr, slots).tasks();
}

// c [R, 16 strips] (+)= a b, with a [R, depth], or [depth, R] where packed, and b [strips, depth, 16].
Floats micro_product(const Floats& a, const Floats& b, Floats c, bool packed, bool accumulate) {
  const int rows = int(c.shape(0)), strips = int(b.shape(0));
  if (rows > kRows || strips > kStrips) throw py::value_error("more rows or strips than the micro-kernel has");
  const Micro m{a.data(),   packed ? 0 : a.shape(1), b.data(),   b.shape(1) * kVec,
                b.shape(1), c.mutable_data(),        c.shape(1), accumulate};
  packed ? micro_dispatch<true>(rows, strips, m) : micro_dispatch<false>(rows, strips, m);
  return c;
}

Floats transpose(const Floats& a) {
  Floats out({kVec, kVec});
  V16 rows[kVec];
  for (int j = 0; j < kVec; ++j) rows[j] = load16(a.data(j, 0));
  transpose16(rows);
  for (int j = 0; j < kVec; ++j) store16(out.mutable_data(j, 0), rows[j]);
  return out;
}

Floats keep(const Floats& a, int n) {
  Floats out(kVec);
  store16(out.mutable_data(), keep_first(load16(a.data()), n));
  return out;
}

// Widened by whole vectors, or one by one.
py::array to_floats(const py::array& a, bool vectors) {
  return dispatch(a, [&]<class T>(T) {
    Floats out(a.size());
    const T* in = data<T>(a);
    if (vectors && a.size() % kVec) throw py::value_error("whole vectors only");
    for (int64_t i = 0; i < a.size(); i += vectors ? kVec : 1) {
      vectors ? store16(out.mutable_data(i), load16(in + i)) : void(out.mutable_at(i) = to_float(in[i]));
    }
    return py::array(out);
  });
}

// Rounded to the dtype of `like`.
py::array from_floats(const Floats& a, const py::array& like) {
  return dispatch(like, [&]<class T>(T) {
    py::array out = poisoned<T>({a.size()});
    for (int64_t i = 0; i < a.size(); ++i) convert(a.at(i), static_cast<T*>(out.mutable_data()) + i);
    return out;
  });
}

}  // namespace
}  // namespace rdk

PYBIND11_MODULE(RDK_MODULE, m) {
  using namespace rdk;
  using namespace py::literals;
  m.attr("lanes") = kLanes;
  m.attr("micro_rows") = kRows;
  m.attr("micro_strips") = kStrips;
  m.attr("few_rows") = kFewRows;
  m.attr("few_grad_rows") = kFewGradRows;
  m.def("index_and_sign", &index_and_sign);
  m.def("forward_panels", &panels<ForwardPass>);
  m.def("grad_panels", &panels<InputGradPass>);
  m.def("product", &product, "kernel"_a, "a"_a, "bank"_a, "cols"_a, "slots"_a, "go"_a, "gi"_a, "seed"_a,
        "scale"_a = 1.0, "bias"_a = py::none(), "ones"_a = false, "piece"_a = 0, "shuffle"_a = 0);
  m.def("bank_grad", &bank_grad, "dy"_a, "x"_a, "slots"_a, "go"_a, "gi"_a, "seed"_a, "scale"_a = 1.0, "ones"_a = false,
        "piece"_a = 0, "shuffle"_a = 0);
  m.def("bank_grad_tasks", &bank_grad_tasks);
  m.def("micro", &micro_product);
  m.def("transpose", &transpose);
  m.def("keep_first", &keep);
  m.def("to_floats", &to_floats);
  m.def("from_floats", &from_floats);
}
