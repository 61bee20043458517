// RMSNorm (arXiv 1910.07467) with the residual addition before it, and its backward pass with the cast for
// the next linear layer behind it.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/row_vectors.h"

namespace train_qat {

namespace {

// sum = residual + branch_scale ∘ branch (null: one); returns the sum of its squares. residual may be sum
// itself.
template <bool scaled, typename T>
float add_branch(float* sum, const float* residual, const T* branch, const float* branch_scale,
                 int64_t columns) {
    FloatVector squares{};
    for_vectors(columns, [&](int64_t c, auto at) {
        FloatVector added = at.load(branch + c);
        if constexpr (scaled) added *= at.load(branch_scale + c);
        const FloatVector r = at.load(residual + c) + added;
        at.store(sum + c, r);
        squares += r * r;
    });
    return sum_of_lanes(squares)[0];
}

float sum_of_squares(const float* row, int64_t columns) {
    FloatVector squares{};
    for_vectors(columns, [&](int64_t c, auto at) {
        const FloatVector r = at.load(row + c);
        squares += r * r;
    });
    return sum_of_lanes(squares)[0];
}

// What the rows of a backward pass share.
struct BackwardColumns {
    const float *weight, *next_scale;
    int64_t count;
};

// partial += g ∘ n; returns the sum of h ∘ n. Here g is the gradient, h = g ∘ weight, n = x * inverse.
template <typename T>
float add_row(float* partial, const T* gradient, const float* x, float inverse,
              const BackwardColumns& columns) {
    FloatVector dot{};
    for_vectors(columns.count, [&](int64_t c, auto at) {
        const FloatVector product = at.load(gradient + c) * (at.load(x + c) * inverse);
        dot += product * at.load(columns.weight + c);
        at.store(partial + c, at.load(partial + c) + product);
    });
    return sum_of_lanes(dot)[0];
}

// d_residual (+)= rstd * (h - n * mean), and the copy for the next linear layer (null: none), in one pass.
template <bool accumulate, bool scaled, typename T>
void write_row_as(float* dr, T* dz, const T* gradient, const float* x, float inverse, float mean,
                  const BackwardColumns& columns) {
    const float shrink = inverse * inverse * mean;
    for_vectors(columns.count, [&](int64_t c, auto at) {
        FloatVector sum =
            inverse * (at.load(gradient + c) * at.load(columns.weight + c)) - shrink * at.load(x + c);
        if constexpr (accumulate) sum += at.load(dr + c);
        at.store(dr + c, sum);
        if constexpr (scaled) sum *= at.load(columns.next_scale + c);
        if (dz != nullptr) at.store(dz + c, sum);
    });
}

template <typename T>
void write_row(float* dr, T* dz, const T* gradient, const float* x, float inverse, float mean,
               const BackwardColumns& columns, bool accumulate) {
    const bool scaled = columns.next_scale != nullptr;
    if (accumulate && scaled)
        write_row_as<true, true>(dr, dz, gradient, x, inverse, mean, columns);
    else if (accumulate)
        write_row_as<true, false>(dr, dz, gradient, x, inverse, mean, columns);
    else if (scaled)
        write_row_as<false, true>(dr, dz, gradient, x, inverse, mean, columns);
    else
        write_row_as<false, false>(dr, dz, gradient, x, inverse, mean, columns);
}

}  // namespace

void CpuBackend::compute(const ResidualRmsnormForward& args) {
    const int64_t rows = args.y.shape[0], columns = args.y.shape[1];
    with_compute_type(args.name, args.y.dtype, [&]<typename T>() {
        const float* weight = args.weight.as<float>();
        const float* branch_scale = args.column_scale.as<float>();
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const float* residual = args.residual_in.as<float>() + m * columns;
                prefetch(residual + columns, columns);
                float squares = 0;
                if (args.branch.empty()) {
                    squares = sum_of_squares(residual, columns);
                } else {
                    float* sum = args.residual_out.as<float>() + m * columns;
                    const T* branch = args.branch.as<T>() + m * columns;
                    prefetch(branch + columns, columns);
                    squares = branch_scale == nullptr
                                  ? add_branch<false>(sum, residual, branch, branch_scale, columns)
                                  : add_branch<true>(sum, residual, branch, branch_scale, columns);
                    residual = sum;
                }
                const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(columns) + args.epsilon);
                args.rstd.as<float>()[m] = inverse;
                T* out = args.y.as<T>() + m * columns;
                for_vectors(columns, [&](int64_t c, auto at) {
                    at.store(out + c, at.load(residual + c) * inverse * at.load(weight + c));
                });
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
        const BackwardColumns shared{args.weight.as<float>(), args.column_scale.as<float>(), columns};
        parallel_for(rows, rows_per_partial_sum, [&](int64_t first, int64_t last) {
            float* partial = partial_sums + first / rows_per_partial_sum * columns;
            std::fill(partial, partial + columns, 0.0f);
            for (int64_t m = first; m < last; ++m) {
                const T* gradient = args.dy.as<T>() + m * columns;
                const float* x = args.residual.as<float>() + m * columns;
                float* dr = args.d_residual.as<float>() + m * columns;
                prefetch(gradient + columns, columns);
                prefetch(x + columns, columns);
                if (args.accumulate_residual) prefetch(dr + columns, columns);
                const float inverse = args.rstd.as<float>()[m];
                const float dot = add_row(partial, gradient, x, inverse, shared);
                write_row(dr, args.dz.empty() ? nullptr : args.dz.as<T>() + m * columns, gradient, x, inverse,
                          dot / static_cast<float>(columns), shared, args.accumulate_residual);
            }
        });
    });
    sum_partials(args.dweight.as<float>(), partial_sums, partial_sums_of(rows), columns,
                 args.accumulate_weight);
}

}  // namespace train_qat
