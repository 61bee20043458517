// What all attention kernels share: where the rows of a head lie in qkv and y.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/operations.h"

namespace train_qat::CU_BACKEND::attention {

constexpr double log2_e = 1.44269504088896341, ln_2 = 0.69314718055994531;

// AttentionShape as kernels take it.
struct AttentionSizes {
    int sequence, heads, kv_heads, group, head_dim;  // group: query heads of a key/value head, H / G
    int qkv_columns, y_columns;
    float inverse_root;  // 1 / sqrt(D)
    float binary_root;   // log2(e) / sqrt(D): scores times this are exponents of two

    explicit AttentionSizes(const AttentionShape& shape)
        : sequence(static_cast<int>(shape.sequence)),
          heads(static_cast<int>(shape.heads)),
          kv_heads(static_cast<int>(shape.kv_heads)),
          group(heads / kv_heads),
          head_dim(static_cast<int>(shape.head_dim)),
          qkv_columns(static_cast<int>(shape.qkv_columns())),
          y_columns(heads * head_dim),
          inverse_root(static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)))),
          binary_root(static_cast<float>(log2_e / std::sqrt(static_cast<double>(head_dim)))) {}
};

// The (T, D) of one head and one sequence within a matrix (B*T, columns).
template <typename T>
struct HeadRows {
    T* first;
    int columns, count;  // count: T
    CU_DEVICE T* row(int index) const { return first + int64_t{index} * columns; }
};
// The `column_head`-th D columns of the matrix.
template <typename T>
CU_DEVICE HeadRows<T> head_rows(T* matrix, int columns, int batch, int column_head, const AttentionSizes& s) {
    return {matrix + int64_t{batch} * s.sequence * columns + column_head * s.head_dim, columns, s.sequence};
}
// qkv (B*T, (H + 2G) * D), also its gradient.
template <typename T>
CU_DEVICE HeadRows<T> query_rows(T* qkv, int batch, int head, const AttentionSizes& s) {
    return head_rows(qkv, s.qkv_columns, batch, head, s);
}
template <typename T>
CU_DEVICE HeadRows<T> key_rows(T* qkv, int batch, int kv_head, const AttentionSizes& s) {
    return head_rows(qkv, s.qkv_columns, batch, s.heads + kv_head, s);
}
template <typename T>
CU_DEVICE HeadRows<T> value_rows(T* qkv, int batch, int kv_head, const AttentionSizes& s) {
    return head_rows(qkv, s.qkv_columns, batch, s.heads + s.kv_heads + kv_head, s);
}
// y or dy (B*T, H*D).
template <typename T>
CU_DEVICE HeadRows<T> output_rows(T* y, int batch, int head, const AttentionSizes& s) {
    return head_rows(y, s.y_columns, batch, head, s);
}

// A block's work: one tile of one head of one sequence. The tiles of a head are neighbours, so that what they
// share stays in the L2 cache; those with the most work - the last queries, the first keys - start first.
struct BlockOfHead {
    int batch, head, tile;
    CU_DEVICE BlockOfHead(int heads, int tiles, bool last_tile_first)
        : batch(static_cast<int>(blockIdx.x) / tiles / heads),
          head(static_cast<int>(blockIdx.x) / tiles % heads),
          tile(static_cast<int>(blockIdx.x) % tiles) {
        if (last_tile_first) tile = tiles - 1 - tile;
    }
};

// Where the T numbers of a head begin in log_sum_exp (B, H, T).
CU_DEVICE int64_t start_of_head(int batch, int head, const AttentionSizes& s) {
    return (int64_t{batch} * s.heads + head) * s.sequence;
}

// Any head dimension, float32 or bfloat16, any alignment. delta: (B, H, T). In attention_any.cu.
template <typename T>
void forward_any(CuStream stream, T* y, float* log_sum_exp, const T* qkv, const AttentionShape& shape);
template <typename T>
void backward_any(CuStream stream, T* dqkv, const T* dy, const T* qkv, const float* log_sum_exp,
                  const AttentionShape& shape, float* delta);

}  // namespace train_qat::CU_BACKEND::attention
