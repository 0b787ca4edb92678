#include "hashed_linear/cuda_passes.cuh"

namespace rdk::gpu {
RDK_PASSES(, Half)
}
