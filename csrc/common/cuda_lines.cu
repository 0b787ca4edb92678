// The chain of two products, which the linear layer and the separable convolution share.
#include "common/chain_launch.cuh"

namespace rdk::gpu {

template Chosen lines<BFloat16>(const LinesProblem<BFloat16>&, bool, Allocator&, const Device&);
template Chosen lines<Half>(const LinesProblem<Half>&, bool, Allocator&, const Device&);
template Chosen lines<float>(const LinesProblem<float>&, bool, Allocator&, const Device&);

}  // namespace rdk::gpu
