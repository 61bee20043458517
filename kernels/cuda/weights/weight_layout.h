// Where the parts of a weight lie in its ComputeWeight, for whoever reads or writes them. ComputeWeight::storage holds
// one of
//     plain    (rows, columns) in the compute type: weights, levels, or scale * level where a row has several groups
//     codes    rows of packed codes (kernels/codes.h) and behind them, where a row has several groups, the effective
//              scales (rows, groups) float32
// and scale_storage the effective scale of each row that has one, else 1.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/codes.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/weights.h"

namespace train_qat::CU_BACKEND {

struct WeightLayout {
    void* numbers = nullptr;  // (rows, row_bytes): plain numbers or codes
    int64_t row_bytes = 0;
    float* row_scale = nullptr;    // (rows)
    float* group_scale = nullptr;  // (rows, groups) or null: not codes, or one scale per row
};

// Of the rows from `first_row` on.
inline WeightLayout layout_of(const ComputeWeight& weight, int64_t first_row = 0) {
    auto* const storage = static_cast<unsigned char*>(weight.storage);
    WeightLayout layout;
    layout.row_bytes = weight.codes == Grid::none ? weight.columns * size_of(weight.dtype)
                                                  : code_row_bytes(weight.columns, code_bits(weight.codes));
    layout.numbers = storage + first_row * layout.row_bytes;
    layout.row_scale = weight.scale_storage + first_row;
    if (weight.codes != Grid::none && weight.code_group < weight.columns) {
        auto* const scales = storage + code_scales_offset(weight.rows, weight.columns, weight.codes);
        layout.group_scale =
            reinterpret_cast<float*>(scales) + first_row * (weight.columns / weight.code_group);
    }
    return layout;
}

// The numbers of a weight that is no packed codes.
inline Tensor dense_weight(const ComputeWeight& weight) {
    return Tensor(layout_of(weight).numbers, weight.dtype, {weight.rows, weight.columns});
}

// Of ComputeWeight::storage, with room for either form: plain, or the widest codes with a scale per 32 columns.
inline int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type) {
    const int64_t plain = rows * columns * size_of(compute_type);
    if (compute_type != DType::bfloat16) return plain;
    constexpr int64_t smallest_group = 32;
    const int64_t scales = rows * (columns / smallest_group) * static_cast<int64_t>(sizeof(float));
    return std::max(plain, code_scales_offset(rows, columns, Grid::integer8) + scales);
}

}  // namespace train_qat::CU_BACKEND
