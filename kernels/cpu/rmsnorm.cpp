// RMSNorm (arXiv 1910.07467) with the residual addition before it, and its backward pass with the cast for
// the next linear layer behind it.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

// Rows whose contributions to dweight are summed together; fixed, so that the result does not depend on
// threads.
constexpr int64_t rows_per_partial_sum = 32;

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

void CpuBackend::residual_rmsnorm_forward(const Tensor& residual_out, const Tensor& y, const Tensor& rstd,
                                          const Tensor& residual_in, const Tensor& branch,
                                          const Tensor& column_scale, const Tensor& weight, float epsilon) {
    constexpr const char* name = "residual_rmsnorm_forward";
    const int64_t rows = y.shape[0], columns = y.shape[1];
    check_tensor(name, "y", y, y.dtype, {rows, columns});
    check_tensor(name, "residual_in", residual_in, DType::float32, {rows, columns});
    check_tensor(name, "rstd", rstd, DType::float32, {rows});
    check_tensor(name, "weight", weight, DType::float32, {columns});
    check_optional(name, "branch", branch, y.dtype, {rows, columns});
    check_optional(name, "column_scale", column_scale, DType::float32, {columns});
    if (branch.empty() != residual_out.empty())
        throw std::logic_error("residual_rmsnorm_forward: branch and residual_out come together");
    check_optional(name, "residual_out", residual_out, DType::float32, {rows, columns});
    with_compute_type(name, y.dtype, [&]<typename T>() {
        const float* scale = weight.as<float>();
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const float* residual = residual_in.as<float>() + m * columns;
                float squares = 0;
                if (branch.empty()) {
#pragma omp simd reduction(+ : squares)
                    for (int64_t c = 0; c < columns; ++c) squares += residual[c] * residual[c];
                } else {
                    float* sum = residual_out.as<float>() + m * columns;
                    squares = add_branch(sum, residual, branch.as<T>() + m * columns,
                                         column_scale.as<float>(), columns);
                    residual = sum;
                }
                const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(columns) + epsilon);
                rstd.as<float>()[m] = inverse;
                T* __restrict out = y.as<T>() + m * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; ++c) out[c] = residual[c] * inverse * scale[c];
            }
        });
    });
}

int64_t CpuBackend::rmsnorm_backward_workspace(int64_t rows, int64_t columns) const {
    return (rows + rows_per_partial_sum - 1) / rows_per_partial_sum * columns *
           static_cast<int64_t>(sizeof(float));
}

void CpuBackend::rmsnorm_backward(const Tensor& d_residual, const Tensor& dweight, const Tensor& dz,
                                  const Tensor& dy, const Tensor& residual, const Tensor& rstd,
                                  const Tensor& weight, const Tensor& column_scale, bool accumulate_residual,
                                  bool accumulate_weight, void* workspace) {
    constexpr const char* name = "rmsnorm_backward";
    const int64_t rows = dy.shape[0], columns = dy.shape[1];
    check_tensor(name, "dy", dy, dy.dtype, {rows, columns});
    check_tensor(name, "d_residual", d_residual, DType::float32, {rows, columns});
    check_tensor(name, "residual", residual, DType::float32, {rows, columns});
    check_tensor(name, "rstd", rstd, DType::float32, {rows});
    check_tensor(name, "weight", weight, DType::float32, {columns});
    check_tensor(name, "dweight", dweight, DType::float32, {columns});
    check_optional(name, "dz", dz, dy.dtype, {rows, columns});
    check_optional(name, "column_scale", column_scale, DType::float32, {columns});
    float* partial_sums = static_cast<float*>(workspace);
    with_compute_type(name, dy.dtype, [&]<typename T>() {
        const float* scale = weight.as<float>();
        const float* next_scale = column_scale.as<float>();
        parallel_for(rows, rows_per_partial_sum, [&](int64_t first, int64_t last) {
            float* __restrict partial = partial_sums + first / rows_per_partial_sum * columns;
            std::fill(partial, partial + columns, 0.0f);
            for (int64_t m = first; m < last; ++m) {
                const T* __restrict gradient = dy.as<T>() + m * columns;
                const float* __restrict x = residual.as<float>() + m * columns;
                float* __restrict dr = d_residual.as<float>() + m * columns;
                const float inverse = rstd.as<float>()[m];
                float dot = 0;  // sum of h ∘ n
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < columns; ++c) {
                    const float g = gradient[c];
                    const float n = x[c] * inverse;
                    dot += g * scale[c] * n;
                    partial[c] += g * n;
                }
                write_row(dr, dz.empty() ? nullptr : dz.as<T>() + m * columns, gradient, x, scale, next_scale,
                          inverse, dot / static_cast<float>(columns), columns, accumulate_residual);
            }
        });
    });
    const int64_t partials = (rows + rows_per_partial_sum - 1) / rows_per_partial_sum;
    float* out = dweight.as<float>();
    constexpr int64_t columns_per_block = 64;
    parallel_for(columns, columns_per_block, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
            double total = accumulate_weight ? static_cast<double>(out[c]) : 0.0;
            for (int64_t p = 0; p < partials; ++p) total += partial_sums[p * columns + c];
            out[c] = static_cast<float>(total);
        }
    });
}

}  // namespace train_qat
