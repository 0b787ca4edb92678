// The emulation's settings and its trace in a pybind11 module of kernels: `bind(m)`. A diagnosis becomes a
// RuntimeError.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "simt/device_memory.h"
#include "simt/simt.h"

namespace simt {

// A module's `configure(...)` sets what is named and the defaults of the rest; `report()` is of all launches since
// `reset()`: {"traced", "accesses", "races": [text], "rows": [{"file", "line", "op", ...}]}, see trace.h.
inline void bind(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace py::literals;
  m.def(
      "configure",
      [](int order, int block_order, uint32_t seed, int cp_early, bool strict_exit, size_t smem_limit) {
        cfg = {order, block_order, seed, cp_early, strict_exit, smem_limit};
      },
      py::kw_only(), "order"_a = Config().order, "block_order"_a = Config().block_order, "seed"_a = Config().seed,
      "cp_early"_a = Config().cp_early, "strict_exit"_a = Config().strict_exit, "smem_limit"_a = Config().smem_limit);
  m.def("reset", &trace::reset);
  m.def("report", [] {
    const trace::Report r = trace::report();
    py::list rows;
    for (const trace::Row& row : r.rows) {
      rows.append(py::dict("file"_a = row.file, "line"_a = row.line, "op"_a = row.op, "space"_a = row.space,
                           "region"_a = row.region, "bytes"_a = row.bytes, "requests"_a = row.requests,
                           "lanes"_a = row.lanes, "units"_a = row.units, "ratio"_a = row.ratio, "worst"_a = row.worst));
    }
    return py::dict("traced"_a = trace::kOn, "accesses"_a = r.accesses, "races"_a = r.races, "rows"_a = rows);
  });
}

// An array in device memory, what was in it too; `back` copies it to the array again.
class DeviceArray : public DeviceMemory {
 public:
  DeviceArray(const pybind11::array& host, const char* name) : DeviceMemory(size_t(host.nbytes()), name), host_(host) {
    if (!(host.flags() & pybind11::array::c_style)) throw pybind11::value_error("expected a contiguous array");
    std::memcpy(get<void>(), host.data(), bytes());
  }
  pybind11::array back() {
    std::memcpy(host_.mutable_data(), get<void>(), bytes());
    return host_;
  }

 private:
  pybind11::array host_;
};

}  // namespace simt
