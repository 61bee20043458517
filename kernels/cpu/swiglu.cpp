// SwiGLU (arXiv 2002.05202): y = silu(gate) * up with silu(x) = x σ(x), σ(x) = 1 / (1 + e^-x).
// Backward: d_up = dy silu(gate);  d_gate = dy up σ (1 + gate (1 - σ)).
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/row_vectors.h"

namespace train_qat {

namespace {

// One row. scaled: both halves of the input times their column scales.
template <bool scaled, typename T>
void forward_row(T* y, const T* gate, const T* up, const float* gate_scale, const float* up_scale,
                 int64_t columns) {
    for_vectors(columns, [&](int64_t c, auto at) {
        FloatVector g = at.load(gate + c), u = at.load(up + c);
        if constexpr (scaled) g *= at.load(gate_scale + c), u *= at.load(up_scale + c);
        at.store(y + c, g * u / (1.0f + exponential(-g)));
    });
}

// scaled: the gradients times the scales as well. Every column reads its inputs before it writes: in place is
// safe.
template <bool scaled, typename T>
void backward_row(T* d_gate, T* d_up, const T* dy, const T* gate, const T* up, const float* gate_scale,
                  const float* up_scale, int64_t columns) {
    for_vectors(columns, [&](int64_t c, auto at) {
        FloatVector g = at.load(gate + c), u = at.load(up + c);
        if constexpr (scaled) g *= at.load(gate_scale + c), u *= at.load(up_scale + c);
        const FloatVector sigmoid = 1.0f / (1.0f + exponential(-g));
        const FloatVector product = at.load(dy + c) * sigmoid;
        FloatVector dg = product * u * (1.0f + g * (1.0f - sigmoid));
        FloatVector du = product * g;
        if constexpr (scaled) dg *= at.load(gate_scale + c), du *= at.load(up_scale + c);
        at.store(d_gate + c, dg);
        at.store(d_up + c, du);
    });
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
                prefetch(gate + 2 * columns, 2 * columns);
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
                prefetch(gate + 2 * columns, 2 * columns);
                prefetch(gradient + columns, columns);
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
