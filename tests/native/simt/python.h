// The emulation's settings and its trace in a pybind11 module of kernels: `bind(m)`. A diagnosis becomes a
// RuntimeError.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

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

// Device memory: an array's bytes, copied to an address aligned as cudaMalloc aligns, registered with the trace under
// `name`, and copied back to the array by `back`. What was in the array is in it.
class DeviceArray {
 public:
  DeviceArray(pybind11::array host, const char* name) : host_(std::move(host)), bytes_(size_t(host_.nbytes())) {
    void* p = nullptr;
    if (posix_memalign(&p, 256, std::max<size_t>(bytes_, 1))) throw std::bad_alloc();
    data_.reset(p);
    std::memcpy(p, host_.data(), bytes_);
    trace::region(p, bytes_, name);
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { trace::forget(data_.get()); }
  template <class T>
  T* get() const {
    return static_cast<T*>(data_.get());
  }
  pybind11::array back() {
    std::memcpy(host_.mutable_data(), data_.get(), bytes_);
    return host_;
  }

 private:
  pybind11::array host_;
  size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> data_{nullptr, std::free};
};

}  // namespace simt
