// SwiGLU (arXiv 2002.05202): y = silu(gate) * up with silu(x) = x σ(x), σ(x) = 1 / (1 + e^-x).
// Backward: d_up = dy silu(gate);  d_gate = dy up σ (1 + gate (1 - σ)).
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/math.h"

namespace train_qat {

namespace {

// One row. scaled: both halves of the input times their column scales.
template <bool scaled, typename T>
void forward_row(T* __restrict y, const T* __restrict gate, const T* __restrict up,
                 const float* __restrict gate_scale, const float* __restrict up_scale, int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
        const float g = scaled ? gate_scale[c] * gate[c] : static_cast<float>(gate[c]);
        const float u = scaled ? up_scale[c] * up[c] : static_cast<float>(up[c]);
        y[c] = g / (1.0f + exponential(-g)) * u;
    }
}

// scaled: the gradients times the scales as well. Every column reads its inputs before it writes: in place is
// safe.
template <bool scaled, typename T>
void backward_row(T* d_gate, T* d_up, const T* dy, const T* gate, const T* up, const float* gate_scale,
                  const float* up_scale, int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
        const float g = scaled ? gate_scale[c] * gate[c] : static_cast<float>(gate[c]);
        const float u = scaled ? up_scale[c] * up[c] : static_cast<float>(up[c]);
        const float d = dy[c];
        const float sigmoid = 1.0f / (1.0f + exponential(-g));
        const float dg = d * u * sigmoid * (1.0f + g * (1.0f - sigmoid));
        const float du = d * g * sigmoid;
        d_gate[c] = scaled ? dg * gate_scale[c] : dg;
        d_up[c] = scaled ? du * up_scale[c] : du;
    }
}

}  // namespace

void CpuBackend::compute(const SwigluForward& args) {
    const int64_t rows = args.y.shape[0], columns = args.y.shape[1];
    with_compute_type(args.name, args.y.dtype, [&]<typename T>() {
        const float* scale = args.column_scale.as<float>();
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const T* gate = args.gate_up.as<T>() + m * 2 * columns;
                T* out = args.y.as<T>() + m * columns;
                if (scale == nullptr)
                    forward_row<false>(out, gate, gate + columns, scale, scale, columns);
                else
                    forward_row<true>(out, gate, gate + columns, scale, scale + columns, columns);
            }
        });
    });
}

void CpuBackend::compute(const SwigluBackward& args) {
    const int64_t rows = args.dy.shape[0], columns = args.dy.shape[1];
    with_compute_type(args.name, args.dy.dtype, [&]<typename T>() {
        const float* scale = args.column_scale.as<float>();
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const T* gate = args.gate_up.as<T>() + m * 2 * columns;
                const T* gradient = args.dy.as<T>() + m * columns;
                T* d_gate = args.d_gate_up.as<T>() + m * 2 * columns;
                if (scale == nullptr)
                    backward_row<false>(d_gate, d_gate + columns, gradient, gate, gate + columns, scale,
                                        scale, columns);
                else
                    backward_row<true>(d_gate, d_gate + columns, gradient, gate, gate + columns, scale,
                                       scale + columns, columns);
            }
        });
    });
}

}  // namespace train_qat
