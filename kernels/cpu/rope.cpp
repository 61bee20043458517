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

}  // namespace

void CpuBackend::compute(const RopeForward& args) {
    const AttentionShape& shape = args.shape;
    with_compute_type(args.name, args.qkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            walk_rows(args.qkv.as<T>(), first, last, args.cosines.as<float>(), args.sines.as<float>(),
                      args.column_scale.as<float>(), shape,
                      args.column_scale.empty() ? turn<false, T> : turn<true, T>);
        });
    });
}

void CpuBackend::compute(const RopeBackward& args) {
    const AttentionShape& shape = args.shape;
    with_compute_type(args.name, args.dqkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            walk_rows(args.dqkv.as<T>(), first, last, args.cosines.as<float>(), args.sines.as<float>(),
                      args.column_scale.as<float>(), shape,
                      args.column_scale.empty() ? turn_back<false, T> : turn_back<true, T>);
        });
    });
}

}  // namespace train_qat
