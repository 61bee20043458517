// What blocks that share the inner dimension of a product have computed, added up.
#pragma once

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

// out (rows, columns), bfloat16, columns a multiple of 8, = the sums over partial (splits, rows, columns), float32; both begin
// at multiples of 16 bytes.
void add_splits(CuStream stream, const Tensor& out, const float* partial, int splits);

}  // namespace train_qat::CU_BACKEND
