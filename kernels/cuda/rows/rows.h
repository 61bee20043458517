// Operations over rows of activations, bound by memory: kernels/operations.h says what each computes.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/device.h"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND {

void embedding_forward(Device& device, const EmbeddingForward& arguments);
void embedding_backward(Device& device, const EmbeddingBackward& arguments);
void residual_rmsnorm_forward(Device& device, const ResidualRmsnormForward& arguments);
void rmsnorm_backward(Device& device, const RmsnormBackward& arguments);
void bias_forward(Device& device, const BiasForward& arguments);
void bias_backward(Device& device, const BiasBackward& arguments);
void head_norm_forward(Device& device, const HeadNormForward& arguments);
void head_norm_backward(Device& device, const HeadNormBackward& arguments);
void rope_forward(Device& device, const RopeForward& arguments);
void rope_backward(Device& device, const RopeBackward& arguments);
void swiglu_forward(Device& device, const SwigluForward& arguments);
void swiglu_backward(Device& device, const SwigluBackward& arguments);
void cross_entropy(Device& device, const CrossEntropy& arguments);
void sum(Device& device, const Sum& arguments);

// Bytes of the workspaces of RmsnormBackward, BiasBackward and HeadNormBackward.
int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns);
int64_t bias_backward_workspace(int64_t rows, int64_t columns);
int64_t head_norm_backward_workspace(const AttentionShape& shape);

}  // namespace train_qat::CU_BACKEND
