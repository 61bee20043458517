// Token embedding, tied to the LM head: both read the same quantized rows and add to the same gradient.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

void CpuBackend::embedding_forward(const Tensor& y, const Tensor& tokens, const ComputeWeight& weight) {
    const int64_t rows = tokens.shape[0], columns = weight.columns;
    check_tensor("embedding_forward", "tokens", tokens, DType::int32, {rows});
    check_tensor("embedding_forward", "y", y, DType::float32, {rows, columns});
    if (!weight.embedding) throw std::logic_error("embedding_forward: the weight was not made for look-ups");
    with_compute_type("embedding_forward", weight.dtype, [&]<typename T>() {
        const T* table = static_cast<const T*>(weight.storage);
        parallel_for(rows, rows_per_block(columns), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const int64_t token = tokens.as<int32_t>()[m];
                const float scale = weight.scaled ? weight.scale_storage[token] : 1.0f;
                const T* __restrict row = table + token * columns;
                float* __restrict out = y.as<float>() + m * columns;
                for (int64_t c = 0; c < columns; ++c) out[c] = scale * static_cast<float>(row[c]);
            }
        });
    });
}

void CpuBackend::embedding_backward(const Tensor& dq, const Tensor& dy, const Tensor& tokens,
                                    const Tensor& row_scale) {
    const int64_t rows = tokens.shape[0], vocabulary = dq.shape[0], columns = dq.shape[1];
    check_tensor("embedding_backward", "tokens", tokens, DType::int32, {rows});
    check_tensor("embedding_backward", "dq", dq, DType::float32, {vocabulary, columns});
    check_tensor("embedding_backward", "dy", dy, DType::float32, {rows, columns});
    check_optional("embedding_backward", "row_scale", row_scale, DType::float32, {vocabulary});
    // A token occurs many times: each thread owns columns, not tokens, and walks all rows in order.
    constexpr int64_t columns_per_block = 64;
    const float* scales = row_scale.as<float>();
    parallel_for(columns, columns_per_block, [&](int64_t first, int64_t last) {
        for (int64_t m = 0; m < rows; ++m) {
            const int64_t token = tokens.as<int32_t>()[m];
            const float scale = scales != nullptr ? scales[token] : 1.0f;
            const float* __restrict in = dy.as<float>() + m * columns;
            float* __restrict out = dq.as<float>() + token * columns;
            for (int64_t c = first; c < last; ++c) out[c] += scale * in[c];
        }
    });
}

}  // namespace train_qat
