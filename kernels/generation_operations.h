// The operations of generation, token after token on packed weights: kernels/operations.h, which includes this file, says
// what holds for all operations. Activations are float32 on every device, so that what is generated does not depend on
// the type that a model was trained in.
#pragma once

#include <cstdint>

#include "kernels/attention_operations.h"
#include "kernels/grid.h"
#include "kernels/operation_cost.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace train_qat {

// A weight matrix in the form of a message, which is packed codes and effective scales, or plain numbers without a grid.
// Rows of numbers begin at multiples of 16 bytes, with zeros behind their last number.
struct PackedMatrix {
    int64_t rows = 0;     // N, outputs
    int64_t columns = 0;  // K, inputs
    Grid grid = Grid::none;
    int64_t group = 0;             // columns per scale: K, or a divisor of K that is a multiple of 8
    DType dtype = DType::float32;  // of the numbers without a grid: float32 or bfloat16
    WeightMessage message;

    // Of numbers and scales: what one matmul reads.
    int64_t number_bytes() const { return rows * message.row_bytes; }
    int64_t scale_bytes() const { return rows * message.scales_per_row * int64_t{4}; }
};

// Bytes from one row of numbers to the next.
int64_t packed_row_bytes(int64_t columns, Grid grid, DType dtype);

// y[m,n] = sum_k x[m,k] w[n,k], w = s * level. For few rows M: it is bound by reading the weights. Backends may round x by
// 2^-23 of the largest magnitude in its row, about what float32 loses in the sum.
struct PackedMatmulForward {
    Tensor y;  // (M, N) float32
    Tensor x;  // (M, K) float32
    const PackedMatrix& weight;

    static constexpr const char* name = "packed_matmul_forward";
    void check() const;
    OperationCost cost() const;
};

// y[m,:] = w[token,:]
struct PackedEmbeddingForward {
    Tensor y;       // (M, K) float32
    Tensor tokens;  // (M) int32, each in [0, N): the caller has checked
    const PackedMatrix& weight;

    static constexpr const char* name = "packed_embedding_forward";
    void check() const;
    OperationCost cost() const;
};

// Causal attention of M = shape.sequence new positions of one sequence (shape.batch = 1), from `position` on, to themselves
// and to all before: first writes the new keys and values into the caches, then, with the cached k and v,
//     y[i] = sum_{u <= position + i} softmax_u(q[i]·k[u] / sqrt(D)) v[u]
// query head h reading key/value head h / (H/G).
struct CachedAttentionForward {
    Tensor y;              // (M, H*D) float32
    Tensor keys;           // (G, D, T) float32: positions side by side, as products with a query read them
    Tensor values;         // (G, T, D) float32
    Tensor qkv;            // (M, (H + 2G) * D) float32, rotated
    int64_t position = 0;  // 0 <= position, position + M <= T
    AttentionShape shape;

    static constexpr const char* name = "cached_attention_forward";
    void check() const;
    OperationCost cost() const;
};

}  // namespace train_qat
