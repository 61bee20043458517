// Causal attention with grouped key/value heads: kernels/operations.h says what it computes.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/device.h"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND {

void attention_forward(Device& device, const AttentionForward& arguments);
// The same by Hopper's own instructions, bfloat16 and heads of 64 or 128; std::runtime_error for anything else. What
// CudaOptions::attention chooses for both passes. The backward pass needs y_remainder.
void hopper_attention_forward(Device& device, const AttentionForward& arguments);
void attention_backward(Device& device, const AttentionBackward& arguments);
void hopper_attention_backward(Device& device, const AttentionBackward& arguments);

// Bytes of AttentionBackward::workspace.
int64_t attention_backward_workspace(const Device& device, const AttentionShape& shape);
int64_t hopper_attention_backward_workspace(const Device& device, const AttentionShape& shape);
// Backend::wants_attention_remainder
bool wants_attention_remainder(const Device& device);

}  // namespace train_qat::CU_BACKEND
