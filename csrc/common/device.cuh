// What device code is written with: kernels include this and no other CUDA header, no torch, no inline assembly, no
// <<<>>>, no __shared__. With RDK_SIMT the same names come from tests/native/simt, which runs the kernels on the host.
#pragma once

#ifdef RDK_SIMT
#include "simt/simt.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define RDK_DEVICE __device__ __forceinline__
#define RDK_HOST_DEVICE __host__ __device__ __forceinline__

// T* name: the dynamic shared memory of the launch, 16-byte aligned.
#define RDK_DYN_SMEM(T, name)                                          \
  extern __shared__ __align__(16) unsigned char rdk_dynamic_shared_[]; \
  T* const name = reinterpret_cast<T*>(rdk_dynamic_shared_)
// T name[count] in static shared memory, 16-byte aligned.
#define RDK_SHARED(T, name, count) __shared__ __align__(16) T name[count]

#define RDK_UNPAREN_(...) __VA_ARGS__
// RDK_LAUNCH((kernel<int, 4>), grid, block, bytes of dynamic shared memory, stream, arguments...)
#define RDK_LAUNCH(kernel, grid, block, smem, stream, ...) \
  RDK_UNPAREN_ kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)

namespace rdk::gpu {

using Half = __half;
using BFloat16 = __nv_bfloat16;

// Lets `kernel` be launched with more than 48 KiB of dynamic shared memory; a cudaError_t, 0 where it may.
template <class... P>
int smem_optin(void (*kernel)(P...), size_t bytes) {
  const void* function = reinterpret_cast<const void*>(kernel);
  return int(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

// Starts copying 16 bytes to shared memory, both ends 16-byte aligned; past `bytes` (0 .. 16) of them, zeros.
RDK_DEVICE void cp_async16(void* smem, const void* gmem, int bytes) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(smem));
  const size_t from = __cvta_generic_to_global(gmem);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// Ends a group of copies.
RDK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups, the last ones, are under way.
template <int N>
RDK_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements: lane 8 m + i passes the address of row i of matrix m, and gets in r[m] the
// elements 2 (lane % 4) and the next of row lane / 4; transposed, those of column lane / 4.
RDK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
RDK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const uint32_t at = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// The tensor cores' d += a b with fp32 sums: m16n8k16 for Half and BFloat16; m16n8k8 for float, of which the tensor
// cores see the upper 19 bits only (see to_tf32).
template <class T>
RDK_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#define RDK_MMA_(shape_and_types)                                                                            \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, Half>) {
    RDK_MMA_("m16n8k16.row.col.f32.f16.f16.f32");
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    RDK_MMA_("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else {
    static_assert(std::is_same_v<T, float>, "mma<Half>, mma<BFloat16> or mma<float>");
    RDK_MMA_("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
#undef RDK_MMA_
}

// The bits of x rounded to tf32, ties away from zero.
RDK_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// One memory instruction for 16 or 8 aligned bytes; _const: of memory that the kernel does not write.
RDK_DEVICE uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
RDK_DEVICE uint4 load16_const(const void* p) { return __ldg(static_cast<const uint4*>(p)); }
RDK_DEVICE void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }
RDK_DEVICE uint2 load8(const void* p) { return *static_cast<const uint2*>(p); }
RDK_DEVICE uint2 load8_const(const void* p) { return __ldg(static_cast<const uint2*>(p)); }
RDK_DEVICE void store8(void* p, uint2 v) { *static_cast<uint2*>(p) = v; }

}  // namespace rdk::gpu

#endif
