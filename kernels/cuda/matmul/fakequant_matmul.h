// Matmuls with weights that are quantized, or unpacked, on their way into the tensor cores. With the levels
// q:
//     forward         z (M, N)  = x (M, K) qᵀ
//     input gradient  dx (M, K) = dz (M, N) q
// Where rows have several scales, the product s q rounded to bfloat16 takes the place of q
// (kernels/backend.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/matmul/matmul_forms.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/grid.h"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

enum class WeightSource : uint8_t {
    bfloat16,         // q itself
    master_float32,   // w, with q = level(w / effective_scale(s))
    master_bfloat16,  // the same
    codes,            // of q (kernels/codes.h)
};

struct FakeQuantWeight {
    int64_t rows = 0, columns = 0;  // N, K
    WeightSource source = WeightSource::codes;
    const void* data = nullptr;
    // (N, K / group) float32. For codes the effective scales, or null where rows have one scale.
    const float* scales = nullptr;
    int64_t group = 0;  // columns per scale: K, or a power of two from 8 on that divides K
    Grid grid = Grid::none;
};

// x, dz, dx: bfloat16; z: bfloat16 or float32. column_scale: (N) float32, multiplies z's columns in float32,
// or null.
void fakequant_matmul_forward(CuStream stream, const Tensor& z, const Tensor& x,
                              const FakeQuantWeight& weight, const float* column_scale,
                              TileSize size = TileSize::automatic);
void fakequant_matmul_input_gradient(CuStream stream, const Tensor& dx, const Tensor& dz,
                                     const FakeQuantWeight& weight, TileSize size = TileSize::automatic);

}  // namespace train_qat::CU_BACKEND
