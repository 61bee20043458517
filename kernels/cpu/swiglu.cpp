// SwiGLU (arXiv 2002.05202): y = silu(gate) * up with silu(x) = x σ(x), σ(x) = 1 / (1 + e^-x).
// Backward: d_up = dy silu(gate);  d_gate = dy up σ (1 + gate (1 - σ)).
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/math.h"

namespace train_qat {

void CpuBackend::swiglu_forward(const Tensor& y, const Tensor& gate_up) {
    const int64_t rows = y.shape[0], columns = y.shape[1];
    check_tensor("swiglu_forward", "y", y, y.dtype, {rows, columns});
    check_tensor("swiglu_forward", "gate_up", gate_up, y.dtype, {rows, 2 * columns});
    with_compute_type("swiglu_forward", y.dtype, [&]<typename T>() {
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const T* __restrict gate = gate_up.as<T>() + m * 2 * columns;
                const T* __restrict up = gate + columns;
                T* __restrict out = y.as<T>() + m * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; ++c) {
                    const float g = gate[c];
                    out[c] = g / (1.0f + exponential(-g)) * static_cast<float>(up[c]);
                }
            }
        });
    });
}

void CpuBackend::swiglu_backward(const Tensor& d_gate_up, const Tensor& dy, const Tensor& gate_up,
                                 const Tensor& column_scale) {
    const int64_t rows = dy.shape[0], columns = dy.shape[1];
    check_tensor("swiglu_backward", "dy", dy, dy.dtype, {rows, columns});
    check_tensor("swiglu_backward", "gate_up", gate_up, dy.dtype, {rows, 2 * columns});
    check_tensor("swiglu_backward", "d_gate_up", d_gate_up, dy.dtype, {rows, 2 * columns});
    check_optional("swiglu_backward", "column_scale", column_scale, DType::float32, {2 * columns});
    with_compute_type("swiglu_backward", dy.dtype, [&]<typename T>() {
        const auto run = [&]<bool scaled>() {
            const float* scale_gate = column_scale.as<float>();
            const float* scale_up = scaled ? scale_gate + columns : nullptr;
            parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
                for (int64_t m = first; m < last; ++m) {
                    const T* gate = gate_up.as<T>() + m * 2 * columns;
                    const T* up = gate + columns;
                    const T* gradient = dy.as<T>() + m * columns;
                    T* d_gate = d_gate_up.as<T>() + m * 2 * columns;
                    T* d_up = d_gate + columns;
                    // Every column reads its inputs before it writes them: in place is safe.
#pragma omp simd
                    for (int64_t c = 0; c < columns; ++c) {
                        const float g = gate[c], u = up[c], d = gradient[c];
                        const float sigmoid = 1.0f / (1.0f + exponential(-g));
                        const float dg = d * u * sigmoid * (1.0f + g * (1.0f - sigmoid));
                        const float du = d * g * sigmoid;
                        d_gate[c] = scaled ? dg * scale_gate[c] : dg;
                        d_up[c] = scaled ? du * scale_up[c] : du;
                    }
                }
            });
        };
        if (column_scale.empty())
            run.template operator()<false>();
        else
            run.template operator()<true>();
    });
}

}  // namespace train_qat
