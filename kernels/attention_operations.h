// The operations between the linear layers of attention: kernels/operations.h, which includes this file, says what holds
// for all operations.
#pragma once

#include <cstdint>

#include "kernels/operation_cost.h"
#include "kernels/tensor.h"

namespace train_qat {

struct AttentionShape {
    int64_t batch = 0, sequence = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t rows() const { return batch * sequence; }
    int64_t normed_heads() const { return heads + kv_heads; }
    int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }
};

// The largest head that head norms take.
constexpr int64_t most_normed_head_dim = 256;

// RMSNorm (arXiv 1910.07467) of each query head and each key head by itself, as Qwen3 has it before the rotation. With
// x' = column_scale ∘ x, in each row, for each of the H + G query and key heads:
//     rstd = 1 / sqrt(mean_D(x'²) + epsilon)
//     y    = x' * rstd * weight      (query_weight or key_weight)
// and y = x' for the G value heads. D is at most most_normed_head_dim.
struct HeadNormForward {
    Tensor y;                         // (B*T, (H + 2G) * D) compute type, not x's memory
    Tensor rstd;                      // (B*T, H + G) float32
    Tensor x;                         // (B*T, (H + 2G) * D) compute type, columns [queries | keys | values]
    Tensor column_scale = {};         // ((H + 2G) * D) float32 or empty
    Tensor query_weight, key_weight;  // (D) float32
    float epsilon = 0;
    AttentionShape shape;

    static constexpr const char* name = "head_norm_forward";
    void check() const;
    OperationCost cost() const;
};

// With n = x' * rstd and h = dy ∘ weight, for query and key heads:
//     dx       = column_scale ∘ (rstd * (h - n * mean_D(h ∘ n)))
//     dweight (+)= sum over rows and heads of dy ∘ n
// and dx = column_scale ∘ dy for value heads.
struct HeadNormBackward {
    Tensor dx;                          // (B*T, (H + 2G) * D) compute type, may be dy's memory
    Tensor dquery_weight, dkey_weight;  // (D) float32
    Tensor dy;                          // (B*T, (H + 2G) * D) compute type
    Tensor x;                           // as in the forward pass, not yet scaled
    Tensor rstd;                        // as in the forward pass
    Tensor column_scale = {};           // as in the forward pass
    Tensor query_weight, key_weight;    // (D) float32
    bool accumulate_weight = false;
    void* workspace = nullptr;  // Backend::head_norm_backward_workspace(shape) bytes
    AttentionShape shape;

    static constexpr const char* name = "head_norm_backward";
    void check() const;
    OperationCost cost() const;
};

// Rotary position embedding (arXiv 2104.09864), half-split: of each head's D numbers, i and i + D/2 turn by the angle
// t * theta^(-2i/D). In place on qkv, columns [queries | keys | values]: all columns times column_scale, then queries
// and keys turned.
struct RopeForward {
    Tensor qkv;                // (B*T, (H + 2G) * D) compute type
    Tensor cosines, sines;     // (T, D/2) float32, or longer in T
    Tensor column_scale = {};  // ((H + 2G) * D) float32 or empty
    AttentionShape shape;

    static constexpr const char* name = "rope_forward";
    void check() const;
    OperationCost cost() const;
};

// The gradient's queries and keys turned back, then all columns times column_scale.
struct RopeBackward {
    Tensor dqkv;               // (B*T, (H + 2G) * D) compute type
    Tensor cosines, sines;     // (T, D/2) float32, or longer in T
    Tensor column_scale = {};  // ((H + 2G) * D) float32 or empty
    AttentionShape shape;

    static constexpr const char* name = "rope_backward";
    void check() const;
    OperationCost cost() const;
};

// Causal attention, query head h reading key/value head h / (H/G):
//     y[t] = sum_{u <= t} softmax_u(q[t]·k[u] / sqrt(D)) v[u]
// never holding more than a tile of the T x T weights (arXiv 2205.14135).
struct AttentionForward {
    Tensor y;            // (B*T, H*D) compute type
    Tensor log_sum_exp;  // (B, H, T) float32: the softmax's logarithmic denominators, for the backward pass
    Tensor qkv;          // (B*T, (H + 2G) * D) compute type, rotated
    // (B*T, H*D) compute type: y before rounding minus y, or empty. For the backward pass of backends that want it
    // (Backend::wants_attention_remainder); others do not take it: std::logic_error.
    Tensor y_remainder = {};
    AttentionShape shape;

    static constexpr const char* name = "attention_forward";
    void check() const;
    OperationCost cost() const;
};

// With respect to the rotated queries and keys.
struct AttentionBackward {
    Tensor dqkv;         // (B*T, (H + 2G) * D) compute type
    Tensor dy;           // (B*T, H*D) compute type
    Tensor qkv;          // as in the forward pass
    Tensor y;            // as in the forward pass
    Tensor log_sum_exp;  // as in the forward pass
    // As in the forward pass; std::logic_error where the backend wants it and it is empty. It makes rowsum(dy ∘ y) exact: where attention is nearly
    // even the gradients of scores, which are differences to it, are smaller than y's rounding.
    Tensor y_remainder = {};
    AttentionShape shape;
    void* workspace = nullptr;  // Backend::attention_backward_workspace(shape) bytes

    static constexpr const char* name = "attention_backward";
    void check() const;
    OperationCost cost() const;
};

}  // namespace train_qat
