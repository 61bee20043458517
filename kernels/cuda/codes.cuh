// Packed codes (kernels/codes.h) back into numbers, for exports and tests: matmuls read codes themselves.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/portable.cuh"

namespace train_qat::CU_BACKEND {

// What `weight` holds as codes in its plain form: levels, or scale * level rounded where a row has several
// groups. out: (N, K) bfloat16.
void unpack_codes(CuStream stream, const Tensor& out, const ComputeWeight& weight);

}  // namespace train_qat::CU_BACKEND
