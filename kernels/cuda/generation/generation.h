// Operations of generation: kernels/generation_operations.h says what each computes.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/device.h"
#include "kernels/generation_operations.h"

namespace train_qat::CU_BACKEND {

void packed_matmul_forward(Device& device, const PackedMatmulForward& arguments);
void packed_embedding_forward(Device& device, const PackedEmbeddingForward& arguments);
void cached_attention_forward(Device& device, const CachedAttentionForward& arguments);

// Backend::read_bandwidth.
double read_bandwidth(Device& device, int64_t bytes);

}  // namespace train_qat::CU_BACKEND
