// Rotary position embedding (arXiv 2104.09864) in the half-split convention: numbers i and i + D/2 of a head
// form a pair that turns by t * theta^(-2i/D). The backward pass turns the gradient back.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/row_vectors.h"

namespace train_qat {

namespace {

// One head at one position, forward: scale, then turn.
template <bool scaled, typename T>
void turn(T* head, const float* cosines, const float* sines, const float* scale, int64_t half) {
    for_vectors(half, [&](int64_t i, auto at) {
        FloatVector a = at.load(head + i), b = at.load(head + half + i);
        if constexpr (scaled) a *= at.load(scale + i), b *= at.load(scale + half + i);
        const FloatVector cosine = at.load(cosines + i), sine = at.load(sines + i);
        at.store(head + i, a * cosine - b * sine);
        at.store(head + half + i, b * cosine + a * sine);
    });
}

// Backward: turn the other way, then scale.
template <bool scaled, typename T>
void turn_back(T* head, const float* cosines, const float* sines, const float* scale, int64_t half) {
    for_vectors(half, [&](int64_t i, auto at) {
        const FloatVector a = at.load(head + i), b = at.load(head + half + i);
        const FloatVector cosine = at.load(cosines + i), sine = at.load(sines + i);
        FloatVector first = a * cosine + b * sine, second = b * cosine - a * sine;
        if constexpr (scaled) first *= at.load(scale + i), second *= at.load(scale + half + i);
        at.store(head + i, first);
        at.store(head + half + i, second);
    });
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
        prefetch(row + columns, columns);
        for (int64_t h = 0; h < turned_heads; ++h)
            turn_head(row + h * shape.head_dim, cosines + t * half, sines + t * half,
                      scales != nullptr ? scales + h * shape.head_dim : nullptr, half);
        if (scales == nullptr) continue;
        const int64_t turned = turned_heads * shape.head_dim;
        for_vectors(columns - turned, [&](int64_t c, auto at) {
            at.store(row + turned + c, at.load(row + turned + c) * at.load(scales + turned + c));
        });
    }
}

}  // namespace

void CpuBackend::compute(const RopeForward& args) {
    const AttentionShape& shape = args.shape;
    with_compute_type(args.name, args.qkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            const auto walk = [&](auto turn_head) {
                walk_rows(args.qkv.as<T>(), first, last, args.cosines.as<float>(), args.sines.as<float>(),
                          args.column_scale.as<float>(), shape, turn_head);
            };
            if (args.column_scale.empty())
                walk([](auto... head) { turn<false>(head...); });
            else
                walk([](auto... head) { turn<true>(head...); });
        });
    });
}

void CpuBackend::compute(const RopeBackward& args) {
    const AttentionShape& shape = args.shape;
    with_compute_type(args.name, args.dqkv.dtype, [&]<typename T>() {
        parallel_for(shape.rows(), rows_per_block(shape.qkv_columns()), [&](int64_t first, int64_t last) {
            const auto walk = [&](auto turn_head) {
                walk_rows(args.dqkv.as<T>(), first, last, args.cosines.as<float>(), args.sines.as<float>(),
                          args.column_scale.as<float>(), shape, turn_head);
            };
            if (args.column_scale.empty())
                walk([](auto... head) { turn_back<false>(head...); });
            else
                walk([](auto... head) { turn_back<true>(head...); });
        });
    });
}

}  // namespace train_qat
