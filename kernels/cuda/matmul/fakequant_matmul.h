// Matmuls with weights that are packed codes (kernels/cuda/weights/weight_layout.h) until they are on their way into the
// tensor cores. With the levels q:
//     forward         z (M, N)  = x (M, K) qᵀ
//     input gradient  dx (M, K) = dz (M, N) q
// Where rows have several scales, the product s q rounded to bfloat16 takes the place of q (kernels/weights.h).
#pragma once

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/weights.h"

namespace train_qat::CU_BACKEND {

// x, dz, dx: bfloat16; z: bfloat16 or float32. code_group: K, or a power of two from 8 on that divides K.
void fakequant_matmul_forward(CuStream stream, const Tensor& z, const Tensor& x, const ComputeWeight& weight,
                              TileSize size = TileSize::automatic);
void fakequant_matmul_input_gradient(CuStream stream, const Tensor& dx, const Tensor& dz,
                                     const ComputeWeight& weight, TileSize size = TileSize::automatic);

}  // namespace train_qat::CU_BACKEND
