// What ComputeWeight::storage holds on the CPU:
//   [rows as they are, for look-ups (embeddings only) | packed for y = x qᵀ | packed for dx = dz q]
// Packing happens when the levels are written, once per optimizer step; inside the matmuls it would happen
// twice in every micro-batch.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/matmul_cache.h"

namespace train_qat {

struct PackedWeight {
    void* rows = nullptr;  // (N, K) row-major, or null
    void* forward = nullptr;
    void* backward = nullptr;
};

PackedWeight packed_weight(MatmulCache& matmuls, const ComputeWeight& weight);

}  // namespace train_qat
