// Products of rows with a panel in vector registers: a block of 6 rows and 64 columns of sums (16 columns where
// registers are fewer and narrower) stays in registers; a step reads one row of the panel and broadcasts an element of
// each row on the left. On AVX-512 that is 10 loads for 24 multiplications of whole vectors.
#pragma once

#include "kernels/cpu/products/panels.h"

namespace train_qat {

// The left operand of a product: rows as they are in memory, or columns of a panel (for aᵀ b).
template <typename Element>
struct RowsOnLeft {
    const Element* data;
    int64_t stride;  // in elements
    RowsOnLeft from(int64_t row) const { return {data + row * stride, stride}; }
    const Element& at(int row, int64_t step) const { return data[row * stride + step]; }
};
template <typename Element>
struct PanelOnLeft {
    const Element* data;
    PanelOnLeft from(int64_t row) const { return {data + row}; }
    const Element& at(int row, int64_t step) const { return data[step * panel_columns + row]; }
};

#if defined(__AVX512F__)
inline constexpr int block_vectors = 4;
#else
inline constexpr int block_vectors = 2;
#endif
inline constexpr int block_rows = 6;

// Where sums go: rows of T, of which `columns` from here on exist.
template <typename T>
struct ProductRows {
    T* data;
    int64_t stride, columns;
    ProductRows from(int64_t row, int64_t column) const {
        return {data + row * stride + column, stride, columns - column};
    }
};

inline void store_vector(bfloat16* destination, const FloatVector& vector) {
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(vector));
    std::memcpy(destination, &rounded, sizeof rounded);
#else
    for (int64_t i = 0; i < vector_lanes; ++i) destination[i] = vector[i];
#endif
}

// Float32 sums are added to what is there when `accumulate`.
template <typename T>
inline void store_sums(T* destination, FloatVector sums, bool accumulate) {
    if constexpr (std::is_same_v<T, float>)
        if (accumulate) sums += load_vector(destination);
    store_vector(destination, sums);
}

// Vectors of sums of one row of a block, of which `columns` numbers exist.
template <typename T>
inline void store_some_sums(T* destination, const FloatVector* sums, int64_t columns, bool accumulate) {
    for (int64_t c = 0; c < columns; ++c) {
        const float sum = sums[c / vector_lanes][c % vector_lanes];
        if constexpr (std::is_same_v<T, float>)
            destination[c] = accumulate ? destination[c] + sum : sum;
        else
            destination[c] = sum;
    }
}

template <int rows, typename Element, typename Left, typename T>
inline void product_block(const ProductRows<T>& out, const Left& left, const Element* panel, int64_t steps,
                          bool accumulate) {
    FloatVector sums[rows][block_vectors] = {};
    for (int64_t step = 0; step < steps; ++step)
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < block_vectors; ++v)
                multiply_add(sums[r][v], left.at(r, step), panel[step * panel_columns + v * vector_lanes]);
    if (out.columns < block_vectors * vector_lanes) {
        FloatVector kept[rows][block_vectors];
        std::memcpy(kept, sums, sizeof kept);  // an array with an address: sums themselves stay in registers
        for (int r = 0; r < rows; ++r)
            store_some_sums(out.data + r * out.stride, kept[r], out.columns, accumulate);
        return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < block_vectors; ++v)
            store_sums(out.data + r * out.stride + v * vector_lanes, sums[r][v], accumulate);
}

// out (rows, up to 64 columns) (+)= left panel.
template <typename Element, typename Left, typename T>
inline void vector_product(const ProductRows<T>& out, const Left& left, const Element* panel, int64_t rows,
                           int64_t steps, bool accumulate) {
    constexpr int64_t block_columns = block_vectors * vector_lanes;
    for (int64_t column = 0; column < std::min(panel_columns, out.columns); column += block_columns) {
        int64_t row = 0;
        const auto blocks_of = [&]<int count>() {
            for (; row + count <= rows; row += count)
                product_block<count>(out.from(row, column), left.from(row), panel + column, steps,
                                     accumulate);
        };
        blocks_of.template operator()<block_rows>();
        blocks_of.template operator()<4>();
        blocks_of.template operator()<2>();
        blocks_of.template operator()<1>();
    }
}

}  // namespace train_qat
