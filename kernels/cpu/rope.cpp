// Rotary position embedding (arXiv 2104.09864) in the half-split convention: numbers i and i + D/2 of a head
// form a pair that turns by t * theta^(-2i/D). The backward pass turns the gradient back.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

// One head at one position. direction: +1 forward, -1 backward.
template <typename T>
void rotate(T* __restrict head, const float* __restrict cosines, const float* __restrict sines, int64_t half,
            float direction) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        const float c = cosines[i], s = direction * sines[i];
        head[i] = a * c - b * s;
        head[i + half] = b * c + a * s;
    }
}

void check_rope(const char* operation, const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                const AttentionShape& shape) {
    check_attention(operation, shape);
    check_tensor(operation, "qkv", qkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    if (cosines.rank < 1 || cosines.shape[0] < shape.sequence)
        throw std::logic_error(std::string(operation) + ": cosines must have a row for each position");
    check_tensor(operation, "cosines", cosines, DType::float32, {cosines.shape[0], shape.head_dim / 2});
    check_tensor(operation, "sines", sines, DType::float32, {cosines.shape[0], shape.head_dim / 2});
}

}  // namespace

void CpuBackend::rope_forward(const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                              const AttentionShape& shape) {
    check_rope("rope_forward", qkv, cosines, sines, shape);
    const int64_t half = shape.head_dim / 2, columns = shape.qkv_columns();
    with_compute_type("rope_forward", qkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const int64_t t = m % shape.sequence;
                T* row = qkv.as<T>() + m * columns;
                for (int64_t h = 0; h < shape.heads + shape.kv_heads; ++h)
                    rotate(row + h * shape.head_dim, cosines.as<float>() + t * half,
                           sines.as<float>() + t * half, half, 1.0f);
            }
        });
    });
}

void CpuBackend::rope_backward(const Tensor& dqkv, const Tensor& cosines, const Tensor& sines,
                               const Tensor& column_scale, const AttentionShape& shape) {
    check_rope("rope_backward", dqkv, cosines, sines, shape);
    const int64_t half = shape.head_dim / 2, columns = shape.qkv_columns();
    check_optional("rope_backward", "column_scale", column_scale, DType::float32, {columns});
    const int64_t rotated_heads = shape.heads + shape.kv_heads;
    const float* scales = column_scale.as<float>();
    with_compute_type("rope_backward", dqkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const int64_t t = m % shape.sequence;
                T* row = dqkv.as<T>() + m * columns;
                for (int64_t h = 0; h < rotated_heads; ++h) {
                    T* __restrict head = row + h * shape.head_dim;
                    const float* __restrict cosine = cosines.as<float>() + t * half;
                    const float* __restrict sine = sines.as<float>() + t * half;
                    const float* __restrict scale = scales != nullptr ? scales + h * shape.head_dim : nullptr;
                    if (scale == nullptr) {
                        rotate(head, cosine, sine, half, -1.0f);
                        continue;
                    }
                    for (int64_t i = 0; i < half; ++i) {
                        const float a = head[i], b = head[i + half];
                        head[i] = (a * cosine[i] + b * sine[i]) * scale[i];
                        head[i + half] = (b * cosine[i] - a * sine[i]) * scale[i + half];
                    }
                }
                if (scales == nullptr) continue;
                for (int64_t c = rotated_heads * shape.head_dim; c < columns; ++c)
                    row[c] = static_cast<float>(row[c]) * scales[c];
            }
        });
    });
}

}  // namespace train_qat
