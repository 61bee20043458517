// The bias of a linear layer, with the layer's scales, and its gradient: the sum over rows.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

template <bool scaled, typename T>
void add_bias(T* __restrict z, const float* __restrict scale, const float* __restrict bias, int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c)
        z[c] = (scaled ? scale[c] * static_cast<float>(z[c]) : static_cast<float>(z[c])) + bias[c];
}

template <bool scaled, typename T>
void add_gradient(float* __restrict partial, T* __restrict dz, const float* __restrict scale,
                  int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
        const float d = dz[c];
        partial[c] += d;
        if constexpr (scaled) dz[c] = scale[c] * d;
    }
}

}  // namespace

void CpuBackend::compute(const BiasForward& args) {
    const int64_t rows = args.z.shape[0], columns = args.z.shape[1];
    with_compute_type(args.name, args.z.dtype, [&]<typename T>() {
        const float *scale = args.column_scale.as<float>(), *bias = args.bias.as<float>();
        const auto add = scale == nullptr ? add_bias<false, T> : add_bias<true, T>;
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) add(args.z.as<T>() + m * columns, scale, bias, columns);
        });
    });
}

int64_t CpuBackend::bias_backward_workspace(int64_t rows, int64_t columns) const {
    return partial_sums_of(rows) * columns * static_cast<int64_t>(sizeof(float));
}

void CpuBackend::compute(const BiasBackward& args) {
    const int64_t rows = args.dz.shape[0], columns = args.dz.shape[1];
    float* partials = static_cast<float*>(args.workspace);
    with_compute_type(args.name, args.dz.dtype, [&]<typename T>() {
        const float* scale = args.column_scale.as<float>();
        const auto add = scale == nullptr ? add_gradient<false, T> : add_gradient<true, T>;
        parallel_for(rows, rows_per_partial_sum, [&](int64_t first, int64_t last) {
            float* partial = partials + first / rows_per_partial_sum * columns;
            std::fill(partial, partial + columns, 0.0f);
            for (int64_t m = first; m < last; ++m)
                add(partial, args.dz.as<T>() + m * columns, scale, columns);
        });
    });
    sum_partials(args.dbias.as<float>(), partials, partial_sums_of(rows), columns, args.accumulate);
}

}  // namespace train_qat
