// common/device.cuh on the host: the same names and meanings, and a diagnosis of what a GPU would answer with a fault.
#pragma once

#define RDK_DEVICE inline
#define RDK_HOST_DEVICE inline

#define RDK_DYN_SMEM(T, name) T* const name = static_cast<T*>(::simt::dynamic_shared())
#define RDK_SHARED(T, name, count)             \
  alignas(128) static T name[count];           \
  static ::simt::SharedArray name##_shared_{}; \
  name##_shared_.enter(name, sizeof name, #name)
#define RDK_LAUNCH(kernel, grid, block, smem, stream, ...) \
  ::simt::launch(kernel, grid, block, smem, stream __VA_OPT__(, ) __VA_ARGS__)

namespace rdk::gpu {

using Half = __half;
using BFloat16 = __nv_bfloat16;
using simt::Site;

template <class... P>
int smem_optin(void (*kernel)(P...), size_t bytes) {
  return simt::smem_optin(reinterpret_cast<const void*>(kernel), bytes);
}

inline void cp_async16(void* smem, const void* gmem, int bytes, const Site& site = Site::current()) {
  simt::cp_async16(smem, gmem, bytes, site);
}
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int N>
void cp_async_wait() {
  simt::cp_async_wait(N);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, const Site& site = Site::current()) {
  simt::ldmatrix_x4(r, row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, const Site& site = Site::current()) {
  simt::ldmatrix_x4(r, row, true, site);
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site = Site::current()) {
  using simt::Element;
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16> || std::is_same_v<T, float>);
  constexpr Element type = std::is_same_v<T, Half>       ? Element::Half
                           : std::is_same_v<T, BFloat16> ? Element::BFloat16
                                                         : Element::Tf32;
  simt::mma(type, d, a, b, site);
}

inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x != x ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

template <class V>
SIMT_UNTRACED V load_vector(const void* p, const Site& site) {
  simt::check_aligned(p, sizeof(V), "a vector load", site);
  simt::trace::access(p, sizeof(V), simt::trace::Op::Read, site);
  return *static_cast<const V*>(p);
}
template <class V>
SIMT_UNTRACED void store_vector(void* p, const V& v, const Site& site) {
  simt::check_aligned(p, sizeof(V), "a vector store", site);
  simt::trace::access(p, sizeof(V), simt::trace::Op::Write, site);
  *static_cast<V*>(p) = v;
}
inline uint4 load16(const void* p, const Site& site = Site::current()) { return load_vector<uint4>(p, site); }
inline uint4 load16_const(const void* p, const Site& site = Site::current()) { return load_vector<uint4>(p, site); }
inline void store16(void* p, uint4 v, const Site& site = Site::current()) { store_vector(p, v, site); }
inline uint2 load8(const void* p, const Site& site = Site::current()) { return load_vector<uint2>(p, site); }
inline uint2 load8_const(const void* p, const Site& site = Site::current()) { return load_vector<uint2>(p, site); }
inline void store8(void* p, uint2 v, const Site& site = Site::current()) { store_vector(p, v, site); }

}  // namespace rdk::gpu
