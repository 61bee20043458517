// Packed codes (kernels/codes.h) back into numbers: for weights that other ranks have quantized, exports and
// tests. Matmuls read codes themselves.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/weights.h"

namespace train_qat::CU_BACKEND {

// Rows of codes in memory.
struct CodeRows {
    const uint8_t* codes = nullptr;  // (rows, row_bytes)
    int64_t row_bytes = 0;
    const float* scales = nullptr;  // (rows, columns / group); null: one per row, which stays outside
    Grid grid = Grid::none;
    int64_t group = 0;
};

// Levels or, with scales, scale * level rounded to the type of `out`: (N, K) bfloat16 or float32.
void unpack_codes(CuStream stream, const Tensor& out, const CodeRows& rows);

// What `weight` holds as codes in its plain form. out: (N, K) bfloat16.
void unpack_codes(CuStream stream, const Tensor& out, const ComputeWeight& weight);

}  // namespace train_qat::CU_BACKEND
