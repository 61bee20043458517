// RMSNorm (arXiv 1910.07467) of each query head and each key head by itself, with the linear layer's scales before it.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

template <bool scaled, typename T>
float scaled_element(const T* x, const float* scale, int64_t c) {
    return scaled ? scale[c] * static_cast<float>(x[c]) : static_cast<float>(x[c]);
}

// One head of values, in either direction. y may be x.
template <bool scaled, typename T>
void scale_head(T* y, const T* x, const float* scale, int64_t columns) {
    if (!scaled && y == x) return;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) y[c] = scaled_element<scaled>(x, scale, c);
}

// One head of queries or keys; returns rstd.
template <bool scaled, typename T>
float normalize_head(T* __restrict y, const T* __restrict x, const float* __restrict scale,
                     const float* __restrict weight, float epsilon, int64_t columns) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < columns; ++c) {
        const float element = scaled_element<scaled>(x, scale, c);
        squares += element * element;
    }
    const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(columns) + epsilon);
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) y[c] = scaled_element<scaled>(x, scale, c) * rstd * weight[c];
    return rstd;
}

// One head of queries or keys. dweight: what the rows before have given. dx may be dy.
template <bool scaled, typename T>
void head_gradient(T* dx, float* __restrict dweight, const T* dy, const T* __restrict x,
                   const float* __restrict scale, const float* __restrict weight, float rstd,
                   int64_t columns) {
    float dot = 0;  // sum of h ∘ n
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < columns; ++c) {
        const float product = static_cast<float>(dy[c]) * (scaled_element<scaled>(x, scale, c) * rstd);
        dweight[c] += product;
        dot += product * weight[c];
    }
    const float shrink = rstd * rstd * (dot / static_cast<float>(columns));
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
        const float element = scaled_element<scaled>(x, scale, c);
        const float d = rstd * (static_cast<float>(dy[c]) * weight[c]) - shrink * element;
        dx[c] = scaled ? scale[c] * d : d;
    }
}

// function.template operator()<T, scaled>()
template <typename Function>
void with_type_and_scale(const char* operation, const Tensor& x, const Tensor& column_scale,
                         Function&& function) {
    with_compute_type(operation, x.dtype, [&]<typename T>() {
        if (column_scale.empty())
            function.template operator()<T, false>();
        else
            function.template operator()<T, true>();
    });
}

}  // namespace

void CpuBackend::compute(const HeadNormForward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t columns = shape.qkv_columns(), normed = shape.normed_heads(), width = shape.head_dim;
    with_type_and_scale(args.name, args.x, args.column_scale, [&]<typename T, bool scaled>() {
        const float* scales = args.column_scale.as<float>();
        parallel_for(shape.rows(), rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                for (int64_t h = 0; h < normed + shape.kv_heads; ++h) {
                    T* y = args.y.as<T>() + m * columns + h * width;
                    const T* x = args.x.as<T>() + m * columns + h * width;
                    const float* scale = scaled ? scales + h * width : nullptr;
                    const Tensor& weight = h < shape.heads ? args.query_weight : args.key_weight;
                    if (h < normed)
                        args.rstd.as<float>()[m * normed + h] =
                            normalize_head<scaled>(y, x, scale, weight.as<float>(), args.epsilon, width);
                    else
                        scale_head<scaled>(y, x, scale, width);
                }
            }
        });
    });
}

// Partial sums of dquery_weight, then of dkey_weight.
int64_t CpuBackend::head_norm_backward_workspace(const AttentionShape& shape) const {
    return 2 * partial_sums_of(shape.rows()) * shape.head_dim * static_cast<int64_t>(sizeof(float));
}

void CpuBackend::compute(const HeadNormBackward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t columns = shape.qkv_columns(), normed = shape.normed_heads(), width = shape.head_dim;
    const int64_t partials = partial_sums_of(shape.rows());
    float* query_partials = static_cast<float*>(args.workspace);
    float* key_partials = query_partials + partials * width;
    with_type_and_scale(args.name, args.x, args.column_scale, [&]<typename T, bool scaled>() {
        const float* scales = args.column_scale.as<float>();
        parallel_for(shape.rows(), rows_per_partial_sum, [&](int64_t first, int64_t last) {
            float* query_partial = query_partials + first / rows_per_partial_sum * width;
            float* key_partial = key_partials + first / rows_per_partial_sum * width;
            std::fill(query_partial, query_partial + width, 0.0f);
            std::fill(key_partial, key_partial + width, 0.0f);
            for (int64_t m = first; m < last; ++m) {
                for (int64_t h = 0; h < normed + shape.kv_heads; ++h) {
                    const int64_t place = m * columns + h * width;
                    T* dx = args.dx.as<T>() + place;
                    const T* dy = args.dy.as<T>() + place;
                    const float* scale = scaled ? scales + h * width : nullptr;
                    const Tensor& weight = h < shape.heads ? args.query_weight : args.key_weight;
                    if (h < normed)
                        head_gradient<scaled>(dx, h < shape.heads ? query_partial : key_partial, dy,
                                              args.x.as<T>() + place, scale, weight.as<float>(),
                                              args.rstd.as<float>()[m * normed + h], width);
                    else
                        scale_head<scaled>(dx, dy, scale, width);
                }
            }
        });
    });
    sum_partials(args.dquery_weight.as<float>(), query_partials, partials, width, args.accumulate_weight);
    sum_partials(args.dkey_weight.as<float>(), key_partials, partials, width, args.accumulate_weight);
}

}  // namespace train_qat
