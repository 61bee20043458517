// Token embedding, tied to the LM head: both read the same quantized rows and add to the same gradient.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

void CpuBackend::compute(const EmbeddingForward& args) {
    const int64_t rows = args.tokens.shape[0], columns = args.weight.columns;
    with_compute_type(args.name, args.weight.dtype, [&]<typename T>() {
        const T* table = static_cast<const T*>(args.weight.storage);
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const int64_t token = args.tokens.as<int32_t>()[m];
                const float scale = args.weight.scaled ? args.weight.scale_storage[token] : 1.0f;
                const T* __restrict row = table + token * columns;
                float* __restrict out = args.y.as<float>() + m * columns;
                for (int64_t c = 0; c < columns; ++c) out[c] = scale * static_cast<float>(row[c]);
            }
        });
    });
}

void CpuBackend::compute(const EmbeddingBackward& args) {
    const int64_t rows = args.tokens.shape[0], columns = args.dq.shape[1];
    // A token occurs many times: each thread owns columns, not tokens, and walks all rows in order.
    constexpr int64_t columns_per_block = 64;
    const float* scales = args.row_scale.as<float>();
    parallel_for(columns, columns_per_block, [&](int64_t first, int64_t last) {
        for (int64_t m = 0; m < rows; ++m) {
            const int64_t token = args.tokens.as<int32_t>()[m];
            const float scale = scales != nullptr ? scales[token] : 1.0f;
            const float* __restrict in = args.dy.as<float>() + m * columns;
            float* __restrict out = args.dq.as<float>() + token * columns;
            for (int64_t c = first; c < last; ++c) out[c] += scale * in[c];
        }
    });
}

}  // namespace train_qat
