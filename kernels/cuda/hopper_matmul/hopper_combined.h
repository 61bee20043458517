// A matmul and what follows it in one kernel by Hopper's own instructions (hopper_epilogues.cuh), with -gemm hopper.
#pragma once

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND {

// Whether the device computes both in one kernel: with -gemm hopper, a weight that is no packed codes, bfloat16, rows of whole
// 16 bytes that begin at multiples of 16, tables and scales at multiples of 8; RoPE: heads of 32, 64 or 128 numbers;
// SwiGLU: a number of outputs that is a multiple of 8.
bool combines(const Device& device, const MatmulRopeForward& arguments);
bool combines(const Device& device, const MatmulSwigluForward& arguments);

// tile_columns: 256 or 128, or 0: by the shape. std::logic_error for other arguments than those.
void hopper_matmul_rope_forward(Device& device, const MatmulRopeForward& arguments, int tile_columns = 0);
void hopper_matmul_swiglu_forward(Device& device, const MatmulSwigluForward& arguments, int tile_columns = 0);

}  // namespace train_qat::CU_BACKEND
