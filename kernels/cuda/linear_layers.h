// The matmuls of linear layers: kernels/operations.h says what each computes. Plain weights and all weight gradients go
// to a DenseMatmul, weights that are packed codes to fakequant_matmul.h, or either to Hopper's kernels.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/platform/device.h"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND {

// By CudaOptions::gemm. `device` outlives the result. std::runtime_error where this device or this program has no such kernels.
std::unique_ptr<DenseMatmul> choose_dense_matmul(Device& device);

void matmul_forward(Device& device, DenseMatmul& dense, const MatmulForward& arguments);
void matmul_input_gradient(Device& device, DenseMatmul& dense, const MatmulInputGradient& arguments);
void matmul_weight_gradient(DenseMatmul& dense, const MatmulWeightGradient& arguments);

// Whether a weight's quantized form is packed codes or plain levels, by CudaOptions::qat_gemm. `automatic` times both
// forms of a shape once and keeps the choice in the device's tuning table.
bool stores_codes(Device& device, DenseMatmul& dense, const ComputeWeight& weight, Grid grid, int64_t group);

}  // namespace train_qat::CU_BACKEND
