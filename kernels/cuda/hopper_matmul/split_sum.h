// What blocks that share the inner dimension of a product have computed, added up.
#pragma once

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

// out (rows, columns), bfloat16 or float32, columns a multiple of 4, = the sums over partial (splits, rows, columns), float32,
// or += them (float32 only); both begin at multiples of 16 bytes.
void add_splits(CuStream stream, const Tensor& out, const float* partial, int splits,
                bool accumulate = false);

}  // namespace train_qat::CU_BACKEND
