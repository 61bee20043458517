// Weights as operations see them: the form that matmuls read, the rows that the optimizer owns, the messages that
// ranks exchange.
//
// A weight matrix takes part in matmuls as a ComputeWeight: its levels q (kernels/grid.h) and one scale per row,
// w = s[n] * q[n,k]. The levels are exact in the compute type, and the scale leaves the sum, so matmuls are plain:
//     z[m,n]  = sum_k x[m,k] q[n,k]         the linear layer's output is y = s ∘ z
//     dx[m,k] = sum_n dz[m,n] q[n,k]        with dz = s ∘ dy
//     dq[n,k] = sum_m dz[m,n] x[m,k]        and dŵ = dq / s
// Whoever reads the output of a linear layer, and whoever produces its gradient, multiplies by the layer's row_scale
// on the way (arguments named `column_scale`; empty means one): both pass over these numbers anyway. The division by
// s happens once per optimizer step in ste_backward_and_norm. With several scales per row (groups) the scale cannot
// leave the sum: q then holds s*level rounded to the compute type, row_scale is empty, and dq is dŵ itself.
#pragma once

#include <cstdint>

#include "kernels/grid.h"
#include "kernels/tensor.h"

namespace train_qat {

// A weight matrix as matmuls read it. `storage` has the backend's own layout and size (compute_weight_bytes).
struct ComputeWeight {
    int64_t rows = 0;     // N, outputs
    int64_t columns = 0;  // K, inputs
    DType dtype = DType::bfloat16;
    bool embedding = false;  // rows are also looked up one by one (embedding_forward)
    void* storage = nullptr;
    float* scale_storage = nullptr;  // (N)
    bool scaled = false;             // false: row_scale() is empty
    // Set by quantize(), for backends that keep quantized weights packed: the grid whose codes
    // (kernels/codes.h) `storage` holds, or none: numbers of the compute type. code_group: columns per scale.
    Grid codes = Grid::none;
    int64_t code_group = 0;

    Tensor row_scale() const { return scaled ? Tensor(scale_storage, DType::float32, {rows}) : Tensor(); }
};

// One parameter tensor and its optimizer state: `rows` x `columns`, float32, row-major. A vector is one row
// without quantization. Matrices that share one ComputeWeight (query, key, value) stand in it one below the
// other, each from `first_row` on.
struct ParameterRows {
    int64_t rows = 0;
    int64_t columns = 0;
    float* master = nullptr;  // (rows, columns), or null:
    // (rows, columns), in place of `master`: weights that the optimizer rounds stochastically to bfloat16.
    bfloat16* narrow_master = nullptr;
    float* gradient = nullptr;       // (rows, columns)
    float* first_moment = nullptr;   // (rows, columns)
    float* second_moment = nullptr;  // (rows, columns)
    bool decay = true;               // weight decay applies

    Grid grid = Grid::none;
    int64_t group = 0;                     // columns per scale; divides `columns`
    float* scale = nullptr;                // (rows, columns / group)
    float* scale_gradient = nullptr;       // (rows, columns / group)
    float* scale_first_moment = nullptr;   // (rows, columns / group)
    float* scale_second_moment = nullptr;  // (rows, columns / group)
    float scale_gradient_factor = 1.0f;    // LSQ's g = 1 / sqrt(n * Q_p)

    ComputeWeight* compute = nullptr;  // null for tensors that no matmul reads (norm weights)
    int64_t first_row = 0;

    // The place of these weights in their model, for chances that must not depend on how the model is
    // divided: the parameter's number, and how many of its elements come before these rows.
    uint32_t number = 0;
    int64_t first_element = 0;

    int64_t elements() const { return rows * columns; }
    int64_t scales() const { return grid == Grid::none ? 0 : rows * (columns / group); }
};

// Rows [first, first + count) of a parameter, as a parameter of their own.
ParameterRows rows_of(const ParameterRows& whole, int64_t first, int64_t count);

// What other processes need of a parameter to multiply with it: for every row its levels as packed codes
// (kernels/codes.h) and its effective scales or, without a grid, its weights in the compute type. Both arrays
// are whole rows one after another, so that ranks exchange rows (kernels/ranks/communicator.h).
struct WeightMessage {
    void* numbers = nullptr;  // (rows, row_bytes)
    int64_t row_bytes = 0;
    float* scales = nullptr;  // (rows, scales_per_row), or null
    int64_t scales_per_row = 0;
};

// One step of AdamW with decoupled weight decay (arXiv 1711.05101). The moments' bias corrections are 1 - beta^t for
// the t of the weights and of the scales: scales start at the switch and are younger.
//     weights   w <- w - learning_rate (u + weight_decay w)        u: AdamW's direction, about one in size
//     scales    s <- max(smallest_scale, s (1 - scale_learning_rate u))
// A scale moves by a fraction of itself: scales differ in size by orders of magnitude between bit widths, and
// an absolute step of the weights' learning rate would be larger than an 8-bit scale.
struct AdamWStep {
    float learning_rate = 0;
    float scale_learning_rate = 0;
    float beta1 = 0.9f;
    float beta2 = 0.95f;
    float epsilon = 1e-8f;
    float weight_decay = 0;
    int64_t step = 1;        // t >= 1
    int64_t scale_step = 1;  // t >= 1 since the scales exist
    float clip_norm = 0;     // gradients are multiplied by min(1, clip_norm / norm); 0: no clipping
};

// What a step comes to for one number, computed once for all of them: with the clipped gradient g,
//     m <- beta1 m + (1 - beta1) g
//     v <- beta2 v + (1 - beta2) g²
//     u  = step_size m / (inverse_root sqrt(v) + epsilon)
//     w <- max(lowest, keep w - u)        a scale: keep w - u w
struct AdamWConstants {
    float beta1, beta2;
    float step_size;     // learning rate / (1 - beta1^t)
    float inverse_root;  // 1 / sqrt(1 - beta2^t)
    float epsilon;
    float keep;    // 1 - learning rate * weight decay
    float lowest;  // -infinity for weights
};

AdamWConstants constants_of_weights(const AdamWStep& step, bool decay);
AdamWConstants constants_of_scales(const AdamWStep& step);

}  // namespace train_qat
