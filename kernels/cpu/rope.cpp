// Rotary position embedding (arXiv 2104.09864) in the half-split convention: numbers i and i + D/2 of a head
// form a pair that turns by t * theta^(-2i/D). The backward pass turns the gradient back.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

// One head at one position, forward: scale, then turn.
template <bool scaled, typename T>
void turn(T* __restrict head, const float* __restrict cosines, const float* __restrict sines,
          const float* __restrict scale, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        float a = head[i], b = head[i + half];
        if constexpr (scaled) a *= scale[i], b *= scale[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

// Backward: turn the other way, then scale.
template <bool scaled, typename T>
void turn_back(T* __restrict head, const float* __restrict cosines, const float* __restrict sines,
               const float* __restrict scale, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        float first = a * cosines[i] + b * sines[i], second = b * cosines[i] - a * sines[i];
        if constexpr (scaled) first *= scale[i], second *= scale[i + half];
        head[i] = first;
        head[i + half] = second;
    }
}

// Walks over rows and heads: turn_head on queries and keys, the scale alone on values.
template <typename T, typename TurnHead>
void walk_rows(T* rows, int64_t first, int64_t last, const float* cosines, const float* sines,
               const float* scales, const AttentionShape& shape, TurnHead&& turn_head) {
    const int64_t columns = shape.qkv_columns(), half = shape.head_dim / 2;
    const int64_t turned_heads = shape.heads + shape.kv_heads;
    for (int64_t m = first; m < last; ++m) {
        const int64_t t = m % shape.sequence;
        T* row = rows + m * columns;
        for (int64_t h = 0; h < turned_heads; ++h)
            turn_head(row + h * shape.head_dim, cosines + t * half, sines + t * half,
                      scales != nullptr ? scales + h * shape.head_dim : nullptr, half);
        if (scales == nullptr) continue;
        for (int64_t c = turned_heads * shape.head_dim; c < columns; ++c)
            row[c] = static_cast<float>(row[c]) * scales[c];
    }
}

void check_rope(const char* operation, const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                const Tensor& column_scale, const AttentionShape& shape) {
    check_attention(operation, shape);
    check_tensor(operation, "qkv", qkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    check_optional(operation, "column_scale", column_scale, DType::float32, {shape.qkv_columns()});
    if (cosines.rank < 1 || cosines.shape[0] < shape.sequence)
        throw std::logic_error(std::string(operation) + ": cosines must have a row for each position");
    check_tensor(operation, "cosines", cosines, DType::float32, {cosines.shape[0], shape.head_dim / 2});
    check_tensor(operation, "sines", sines, DType::float32, {cosines.shape[0], shape.head_dim / 2});
}

}  // namespace

void CpuBackend::rope_forward(const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                              const Tensor& column_scale, const AttentionShape& shape) {
    check_rope("rope_forward", qkv, cosines, sines, column_scale, shape);
    with_compute_type("rope_forward", qkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            walk_rows(qkv.as<T>(), first, last, cosines.as<float>(), sines.as<float>(),
                      column_scale.as<float>(), shape, column_scale.empty() ? turn<false, T> : turn<true, T>);
        });
    });
}

void CpuBackend::rope_backward(const Tensor& dqkv, const Tensor& cosines, const Tensor& sines,
                               const Tensor& column_scale, const AttentionShape& shape) {
    check_rope("rope_backward", dqkv, cosines, sines, column_scale, shape);
    with_compute_type("rope_backward", dqkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            walk_rows(dqkv.as<T>(), first, last, cosines.as<float>(), sines.as<float>(),
                      column_scale.as<float>(), shape,
                      column_scale.empty() ? turn_back<false, T> : turn_back<true, T>);
        });
    });
}

}  // namespace train_qat
