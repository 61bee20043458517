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
void rope_forward(Device& device, const RopeForward& arguments);
void rope_backward(Device& device, const RopeBackward& arguments);
void swiglu_forward(Device& device, const SwigluForward& arguments);
void swiglu_backward(Device& device, const SwigluBackward& arguments);
void cross_entropy(Device& device, const CrossEntropy& arguments);
void sum(Device& device, const Sum& arguments);

// Bytes of RmsnormBackward::workspace.
int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns);

}  // namespace train_qat::CU_BACKEND
