// The fused matmuls of fakequant_matmul.h by Hopper's own instructions, for cards of compute capability 9.0. No card has
// run them yet: they are chosen by -qat_gemm hopper alone.
#pragma once

#include <optional>
#include <string>

#include "kernels/cuda/hopper_matmul/hopper_code_plan.h"
#include "kernels/cuda/platform/device.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace train_qat::CU_BACKEND {

// "" or why these kernels do not take a weight of this shape (N, K), with `group` columns to a scale: tensor maps need rows
// of whole 16 bytes, here N and K multiples of 8. Groups: K, or a power of two from 32 on that divides K.
std::string hopper_refusal(int64_t rows, int64_t columns, int64_t group);

// z (M, N) = x (M, K) qᵀ and dx (M, K) = dz (M, N) q; all bfloat16, from multiples of 16 bytes on. std::logic_error for a
// weight that hopper_refusal refuses, std::runtime_error for other addresses. plan: code_plan's; splits that would leave a
// block without a slice are not made.
void hopper_matmul_forward(Device& device, const Tensor& z, const Tensor& x, const ComputeWeight& weight,
                           std::optional<CodePlan> plan = {});
void hopper_matmul_input_gradient(Device& device, const Tensor& dx, const Tensor& dz,
                                  const ComputeWeight& weight, std::optional<CodePlan> plan = {});

}  // namespace train_qat::CU_BACKEND
