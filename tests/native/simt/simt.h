// CUDA and common/device.cuh for the host: device code compiles as C++ against this and runs on runtime.h.
#pragma once

#include <cstdint>  // the standard library before the qualifiers below are redefined
#include <cstring>
#include <type_traits>

#include <vector_functions.h>
#include <vector_types.h>
// NVIDIA's own types; they work under a host compiler
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt/runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

#include "simt/device.h"
#include "simt/intrinsics.h"
