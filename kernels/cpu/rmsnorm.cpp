// RMSNorm (arXiv 1910.07467) with the residual addition before it, and its backward pass with the cast for
// the next linear layer behind it.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

// sum = residual + branch_scale ∘ branch (null: one); returns the sum of its squares. residual may be sum
// itself.
template <typename T>
float add_branch(float* sum, const float* residual, const T* branch, const float* branch_scale,
                 int64_t columns) {
    float squares = 0;
    if (branch_scale == nullptr) {
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < columns; ++c) {
            const float r = residual[c] + static_cast<float>(branch[c]);
            sum[c] = r;
            squares += r * r;
        }
    } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < columns; ++c) {
            const float r = residual[c] + branch_scale[c] * static_cast<float>(branch[c]);
            sum[c] = r;
            squares += r * r;
        }
    }
    return squares;
}

// d_residual (+)= rstd * (h - n * mean), and the copy for the next linear layer, in one pass.
template <bool accumulate, bool scaled, typename T>
void write_row_as(float* __restrict dr, T* __restrict dz, const T* __restrict gradient,
                  const float* __restrict x, const float* __restrict scale,
                  const float* __restrict next_scale, float inverse, float mean, int64_t columns) {
    const float shrink = inverse * inverse * mean;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
        const float d = inverse * (static_cast<float>(gradient[c]) * scale[c]) - shrink * x[c];
        const float sum = accumulate ? dr[c] + d : d;
        dr[c] = sum;
        if (dz != nullptr) dz[c] = scaled ? sum * next_scale[c] : sum;
    }
}

template <typename T>
void write_row(float* dr, T* dz, const T* gradient, const float* x, const float* scale,
               const float* next_scale, float inverse, float mean, int64_t columns, bool accumulate) {
    const bool scaled = next_scale != nullptr;
    if (accumulate && scaled)
        write_row_as<true, true>(dr, dz, gradient, x, scale, next_scale, inverse, mean, columns);
    else if (accumulate)
        write_row_as<true, false>(dr, dz, gradient, x, scale, next_scale, inverse, mean, columns);
    else if (scaled)
        write_row_as<false, true>(dr, dz, gradient, x, scale, next_scale, inverse, mean, columns);
    else
        write_row_as<false, false>(dr, dz, gradient, x, scale, next_scale, inverse, mean, columns);
}

}  // namespace

void CpuBackend::compute(const ResidualRmsnormForward& args) {
    const int64_t rows = args.y.shape[0], columns = args.y.shape[1];
    with_compute_type(args.name, args.y.dtype, [&]<typename T>() {
        const float* scale = args.weight.as<float>();
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const float* residual = args.residual_in.as<float>() + m * columns;
                float squares = 0;
                if (args.branch.empty()) {
#pragma omp simd reduction(+ : squares)
                    for (int64_t c = 0; c < columns; ++c) squares += residual[c] * residual[c];
                } else {
                    float* sum = args.residual_out.as<float>() + m * columns;
                    squares = add_branch(sum, residual, args.branch.as<T>() + m * columns,
                                         args.column_scale.as<float>(), columns);
                    residual = sum;
                }
                const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(columns) + args.epsilon);
                args.rstd.as<float>()[m] = inverse;
                T* __restrict out = args.y.as<T>() + m * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; ++c) out[c] = residual[c] * inverse * scale[c];
            }
        });
    });
}

int64_t CpuBackend::rmsnorm_backward_workspace(int64_t rows, int64_t columns) const {
    return partial_sums_of(rows) * columns * static_cast<int64_t>(sizeof(float));
}

void CpuBackend::compute(const RmsnormBackward& args) {
    const int64_t rows = args.dy.shape[0], columns = args.dy.shape[1];
    float* partial_sums = static_cast<float*>(args.workspace);
    with_compute_type(args.name, args.dy.dtype, [&]<typename T>() {
        const float* scale = args.weight.as<float>();
        const float* next_scale = args.column_scale.as<float>();
        parallel_for(rows, rows_per_partial_sum, [&](int64_t first, int64_t last) {
            float* __restrict partial = partial_sums + first / rows_per_partial_sum * columns;
            std::fill(partial, partial + columns, 0.0f);
            for (int64_t m = first; m < last; ++m) {
                const T* __restrict gradient = args.dy.as<T>() + m * columns;
                const float* __restrict x = args.residual.as<float>() + m * columns;
                float* __restrict dr = args.d_residual.as<float>() + m * columns;
                const float inverse = args.rstd.as<float>()[m];
                float dot = 0;  // sum of h ∘ n
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < columns; ++c) {
                    const float g = gradient[c];
                    const float n = x[c] * inverse;
                    dot += g * scale[c] * n;
                    partial[c] += g * n;
                }
                write_row(dr, args.dz.empty() ? nullptr : args.dz.as<T>() + m * columns, gradient, x, scale,
                          next_scale, inverse, dot / static_cast<float>(columns), columns,
                          args.accumulate_residual);
            }
        });
    });
    sum_partials(args.dweight.as<float>(), partial_sums, partial_sums_of(rows), columns,
                 args.accumulate_weight);
}

}  // namespace train_qat
