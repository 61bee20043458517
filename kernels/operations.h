// The operations of a model: mathematics, shapes, dtypes, each documented here once. An operation is called by the
// function of its name (kernels/backend.h) with one of these structs, and implemented once per backend, under the
// same file name: kernels/cpu/ (plain C++, also the readable reference) and kernels/cuda/.
//
// Conventions
//  * Letters: B sequences, T positions, M = B*T rows of activations, C width, H query heads, G key/value heads,
//    D head dimension, F feed-forward width, V vocabulary, N x K a weight matrix (outputs x inputs).
//  * "compute type" is the dtype of activations and matmul operands: bfloat16, or float32 for reference runs.
//    Master weights, moments, gradients of parameters, the residual stream and all reductions are float32.
//  * Results do not depend on the number of threads or blocks: every reduction has a fixed order.
//  * Dimensions may be any positive number, also one, also no multiple of anything.
//  * A view with the wrong dtype or shape is a bug of the caller: std::logic_error naming operation and argument.
//  * `accumulate` false overwrites the output, true adds to it.
//  * Outputs come first. A tensor with a default, `= {}`, may be left out.
//
// Each struct has, beside its members,
//     name      what messages and profiles call the operation
//     check()   std::logic_error unless dtypes and shapes are right
//     cost()    what the operation takes at least: FLOPs of matmuls and attention, bytes of everything else
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention_operations.h"
#include "kernels/generation_operations.h"
#include "kernels/operation_cost.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace train_qat {

// ---- matmuls

// z = x qᵀ
struct MatmulForward {
    Tensor z;  // (M, N) compute type or float32
    Tensor x;  // (M, K) compute type
    const ComputeWeight& weight;

    static constexpr const char* name = "matmul_forward";
    void check() const;
    OperationCost cost() const;
};

// dx = dz q
struct MatmulInputGradient {
    Tensor dx;  // (M, K) compute type
    Tensor dz;  // (M, N) compute type, already multiplied by row_scale
    const ComputeWeight& weight;

    static constexpr const char* name = "matmul_input_gradient";
    void check() const;
    OperationCost cost() const;
};

// dq (+)= dzᵀ x
struct MatmulWeightGradient {
    Tensor dq;  // (N, K) float32
    Tensor dz;  // (M, N) compute type
    Tensor x;   // (M, K) compute type
    bool accumulate = false;

    static constexpr const char* name = "matmul_weight_gradient";
    void check() const;
    OperationCost cost() const;
};

// z = column_scale ∘ z + bias: what a linear layer with a bias adds to its matmul
struct BiasForward {
    Tensor z;                  // (M, N) compute type, in place
    Tensor column_scale = {};  // (N) float32 or empty
    Tensor bias;               // (N) float32

    static constexpr const char* name = "bias_forward";
    void check() const;
    OperationCost cost() const;
};

//     dbias (+)= sum_m dz, of dz as it came
//     dz       = column_scale ∘ dz
struct BiasBackward {
    Tensor dz;                 // (M, N) compute type, in place; without column_scale only read
    Tensor dbias;              // (N) float32
    Tensor column_scale = {};  // (N) float32 or empty
    bool accumulate = false;
    void* workspace = nullptr;  // Backend::bias_backward_workspace(M, N) bytes

    static constexpr const char* name = "bias_backward";
    void check() const;
    OperationCost cost() const;
};

// ---- embedding

// y[m,:] = s[token] * q[token,:]
struct EmbeddingForward {
    Tensor y;       // (M, C) float32
    Tensor tokens;  // (M) int32, each in [0, V): the caller has checked
    const ComputeWeight& weight;

    static constexpr const char* name = "embedding_forward";
    void check() const;
    OperationCost cost() const;
};

// dq[token,:] += s[token] * dy[m,:], in the order of m
struct EmbeddingBackward {
    Tensor dq;              // (V, C) float32
    Tensor dy;              // (M, C) float32
    Tensor tokens;          // (M) int32
    Tensor row_scale = {};  // (V) float32 or empty

    static constexpr const char* name = "embedding_backward";
    void check() const;
    OperationCost cost() const;
};

// ---- normalization

// RMSNorm (arXiv 1910.07467) of the residual stream, with the addition before it:
//     r    = residual_in + column_scale ∘ branch
//     rstd = 1 / sqrt(mean(r²) + epsilon)
//     y    = r * rstd * weight
struct ResidualRmsnormForward {
    Tensor residual_out = {};  // (M, C) float32, may be residual_in's memory; empty with `branch`
    Tensor y;                  // (M, C) compute type
    Tensor rstd;               // (M) float32
    Tensor residual_in;        // (M, C) float32
    Tensor branch = {};        // (M, C) compute type, or empty: then r = residual_in
    Tensor column_scale = {};  // (C) float32 or empty
    Tensor weight;             // (C) float32
    float epsilon = 0;

    static constexpr const char* name = "residual_rmsnorm_forward";
    void check() const;
    OperationCost cost() const;
};

// With n = r * rstd and h = dy ∘ weight:
//     d_residual (+)= rstd * (h - n * mean(h ∘ n))
//     dweight    (+)= sum_m dy ∘ n
//     dz           = column_scale ∘ d_residual, in the compute type: the gradient that the linear layer before this
//                    point of the residual stream wants
struct RmsnormBackward {
    Tensor d_residual;         // (M, C) float32
    Tensor dweight;            // (C) float32
    Tensor dz = {};            // (M, C) compute type, or empty: not wanted
    Tensor dy;                 // (M, C) compute type
    Tensor residual;           // (M, C) float32: r
    Tensor rstd;               // (M) float32
    Tensor weight;             // (C) float32
    Tensor column_scale = {};  // (C) float32 or empty
    bool accumulate_residual = false;
    bool accumulate_weight = false;
    void* workspace = nullptr;  // Backend::rmsnorm_backward_workspace(M, C) bytes

    static constexpr const char* name = "rmsnorm_backward";
    void check() const;
    OperationCost cost() const;
};

// ---- feed-forward

// SwiGLU (arXiv 2002.05202): y = silu(gate) * up, silu(x) = x / (1 + e^-x), [gate | up] = column_scale ∘ gate_up
struct SwigluForward {
    Tensor y;                  // (M, F) compute type
    Tensor gate_up;            // (M, 2F) compute type
    Tensor column_scale = {};  // (2F) float32 or empty

    static constexpr const char* name = "swiglu_forward";
    void check() const;
    OperationCost cost() const;
};

// d_gate_up = column_scale ∘ (gradient with respect to [gate | up])
struct SwigluBackward {
    Tensor d_gate_up;          // (M, 2F) compute type, may be gate_up's memory
    Tensor dy;                 // (M, F) compute type
    Tensor gate_up;            // as in the forward pass, not yet scaled
    Tensor column_scale = {};  // (2F) float32 or empty

    static constexpr const char* name = "swiglu_backward";
    void check() const;
    OperationCost cost() const;
};

// ---- a matmul and what follows it: two operations that a backend may compute in one pass over memory. What comes between
// them is not rounded where it need not lie in memory.

// qkv = rope(column_scale ∘ (x qᵀ)): matmul.z is rope.qkv
struct MatmulRopeForward {
    MatmulForward matmul;
    RopeForward rope;

    static constexpr const char* name = "matmul_rope_forward";
    void check() const;
    OperationCost cost() const;
};

// gate_up = x qᵀ, and y = swiglu(column_scale ∘ gate_up) of the gate_up that lies in memory, which the backward pass reads:
// matmul.z is swiglu.gate_up
struct MatmulSwigluForward {
    MatmulForward matmul;
    SwigluForward swiglu;

    static constexpr const char* name = "matmul_swiglu_forward";
    void check() const;
    OperationCost cost() const;
};

// ---- loss

// Softmax cross entropy of a chunk of rows, with l = column_scale ∘ logits:
//     losses[m] = log(sum_v e^l[m,v]) - l[m, target]
//     d_logits  = column_scale ∘ (softmax(l) - onehot) * gradient_factor
// Logits are float32 or of d_logits' type (without d_logits: of any compute type). Of d_logits' type, they may lend it
// their memory: the same bits as apart from them. All between is float32.
struct CrossEntropy {
    Tensor losses;             // (M) float32
    Tensor d_logits = {};      // (M, V) compute type, or empty: not wanted
    Tensor logits;             // (M, V) float32 or d_logits' type
    Tensor targets;            // (M) int32, each in [0, V)
    Tensor column_scale = {};  // (V) float32 or empty
    float gradient_factor = 0;

    static constexpr const char* name = "cross_entropy";
    void check() const;
    OperationCost cost() const;
};

// total[0] (+)= sum of values, formed in double
struct Sum {
    Tensor total;   // (1) float32
    Tensor values;  // (n) float32
    bool accumulate = false;

    static constexpr const char* name = "sum";
    void check() const;
    OperationCost cost() const;
};

// ---- weights, once per optimizer step

// First scales: statistic(w of the group) / divisor of the grid, at least smallest_scale. Parameters without a grid
// are passed over.
struct InitializeScales {
    std::span<const ParameterRows> parameters;

    static constexpr const char* name = "initialize_scales";
    void check() const;
    OperationCost cost() const;
};

// Writes each parameter's levels and scales (grid none: the weights, rounded to the compute type) into its
// ComputeWeight.
struct Quantize {
    std::span<const ParameterRows> parameters;

    static constexpr const char* name = "quantize";
    void check() const;
    OperationCost cost() const;
};

// The straight-through backward pass. In: gradient = dq (kernels/weights.h). Out, in place,
//     dŵ             = dq / s       (one scale per row; otherwise dŵ = dq)
//     gradient       = inside(w/s) ? dŵ : 0
//     scale_gradient = g * sum over the group of dŵ * scale_gradient(w/s)
// and squares[i] = sum of the squares of both, for parameters[i]. Without a grid: squares only. Sums are formed in
// double, in fixed order.
struct SteBackwardAndNorm {
    std::span<const ParameterRows> parameters;
    Tensor squares;  // (number of parameters) float32

    static constexpr const char* name = "ste_backward_and_norm";
    void check() const;
    OperationCost cost() const;
};

// AdamW on every weight and scale, with the gradients times min(1, clip_norm / sqrt(sum of squares)), then Quantize.
// Scales keep >= smallest_scale and have no decay.
struct AdamwAndQuantize {
    std::span<const ParameterRows> parameters;
    AdamWStep step;
    Tensor
        squares;  // (any number) float32, of all parameters that the norm spans, also where these are a part

    static constexpr const char* name = "adamw_and_quantize";
    void check() const;
    OperationCost cost() const;
};

// ---- weights among ranks

// After Quantize or AdamwAndQuantize of `rows`: writes them into the messages of their parameters. rows[i] is a part
// of the parameter of messages[i]. A NaN weight makes its group's scale NaN.
struct WriteWeightMessages {
    std::span<const ParameterRows> rows;
    std::span<const WeightMessage> messages;

    static constexpr const char* name = "write_weight_messages";
    void check() const;
    OperationCost cost() const;
};

// Makes the ComputeWeights of whole parameters what Quantize would have made of all their rows. Masters and scales of
// `parameters` are not read and may be null.
struct ReadWeightMessages {
    std::span<const ParameterRows> parameters;
    std::span<const WeightMessage> messages;

    static constexpr const char* name = "read_weight_messages";
    void check() const;
    OperationCost cost() const;
};

}  // namespace train_qat
