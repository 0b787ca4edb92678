// What the CUDA library was built for: rdkernels/native.py asks before the first call on a GPU.
#include <cuda_runtime_api.h>

#define RDK_EXPORT extern "C" __attribute__((visibility("default")))

RDK_EXPORT const char rdk_cuda_archs[] = RDK_CUDA_ARCHS;
RDK_EXPORT const int rdk_cuda_version = CUDART_VERSION;
