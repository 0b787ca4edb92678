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

}  // namespace
}  // namespace rdk::gpu

PYBIND11_MODULE(SIMT_MODULE, m) {
  simt::bind(m);
  m.def("sgemm", &rdk::gpu::run_sgemm_on);
  m.def("tgemm", &rdk::gpu::run_tgemm_on);
}
