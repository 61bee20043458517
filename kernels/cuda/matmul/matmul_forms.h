// Our own dense matmuls, by form. All matrices are row-major; out (+)= the product.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

enum class MatmulForm : uint8_t {
    nt,  // out (M, N) = a (M, K) bᵀ,  b (N, K)
    nn,  // out (M, K) = a (M, N) b,   b (N, K)
    tn,  // out (N, K) = aᵀ b,         a (M, N), b (M, K)
};

// How much of the product a block of the tensor-core kernels computes (tile_matmul.cuh).
enum class TileSize : uint8_t { automatic, large, small };

// Tensor cores; out: bfloat16, or float32. column_scale: (columns of out) float32, multiplies them, or null.
// accumulate only with float32.
void matmul_bfloat16(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                     bool accumulate, const float* column_scale = nullptr,
                     TileSize size = TileSize::automatic);
void matmul_float32(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                    bool accumulate);

}  // namespace train_qat::CU_BACKEND
