// Small dense products on tiles that sit in a core's caches, for attention. float32 throughout: rows are widened when
// they are loaded.
#pragma once

#include <cstdint>
#include <cstring>

namespace train_qat {

// Sixteen floats; compilers split it where registers are narrower.
using FloatVector = float __attribute__((vector_size(64)));
inline constexpr int64_t vector_lanes = 16;

inline FloatVector load_vector(const float* source) {
    FloatVector vector;
    std::memcpy(&vector, source, sizeof vector);
    return vector;
}
inline void store_vector(float* destination, const FloatVector& vector) {
    std::memcpy(destination, &vector, sizeof vector);
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// c (rows x 16 vectors) (+)= a b in registers: each step of the inner loop loads `vectors` vectors of b and broadcasts
// `rows` numbers of a.
template <int rows, int vectors>
inline void tile_block(float* c, int64_t c_stride, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                       int64_t b_stride, int64_t inner, bool accumulate) {
    FloatVector sums[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v)
            sums[r][v] = accumulate ? load_vector(c + r * c_stride + v * vector_lanes) : FloatVector{};
    for (int64_t k = 0; k < inner; ++k) {
        FloatVector right[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) right[v] = load_vector(b + k * b_stride + v * vector_lanes);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const float left = a[r * a_row + k * a_inner];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store_vector(c + r * c_stride + v * vector_lanes, sums[r][v]);
}

template <int vectors>
inline void tile_panel(float* c, int64_t c_stride, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                       int64_t b_stride, int64_t rows, int64_t inner, bool accumulate) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
        tile_block<6, vectors>(c + r * c_stride, c_stride, a + r * a_row, a_row, a_inner, b, b_stride, inner,
                               accumulate);
    for (; r + 4 <= rows; r += 4)
        tile_block<4, vectors>(c + r * c_stride, c_stride, a + r * a_row, a_row, a_inner, b, b_stride, inner,
                               accumulate);
    for (; r + 2 <= rows; r += 2)
        tile_block<2, vectors>(c + r * c_stride, c_stride, a + r * a_row, a_row, a_inner, b, b_stride, inner,
                               accumulate);
    for (; r < rows; ++r)
        tile_block<1, vectors>(c + r * c_stride, c_stride, a + r * a_row, a_row, a_inner, b, b_stride, inner,
                               accumulate);
}

// c[i][j] (+)= sum_k a[i * a_row + k * a_inner] b[k * b_stride + j]. columns: a multiple of 16. Either stride of a may
// be one: a transposed operand costs nothing.
inline void tile_multiply(float* c, int64_t c_stride, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                          int64_t b_stride, int64_t rows, int64_t inner, int64_t columns, bool accumulate) {
    int64_t j = 0;
    for (; j + 64 <= columns; j += 64)
        tile_panel<4>(c + j, c_stride, a, a_row, a_inner, b + j, b_stride, rows, inner, accumulate);
    for (; j + 32 <= columns; j += 32)
        tile_panel<2>(c + j, c_stride, a, a_row, a_inner, b + j, b_stride, rows, inner, accumulate);
    for (; j < columns; j += 16)
        tile_panel<1>(c + j, c_stride, a, a_row, a_inner, b + j, b_stride, rows, inner, accumulate);
}

// destination (rows, padded_columns) = source (rows, columns) widened, zeros behind.
template <typename T>
inline void load_rows(float* __restrict destination, int64_t padded_columns, const T* source, int64_t source_stride,
                      int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        float* __restrict out = destination + r * padded_columns;
        const T* __restrict in = source + r * source_stride;
        for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<float>(in[c]);
        for (int64_t c = columns; c < padded_columns; ++c) out[c] = 0.0f;
    }
}

// destination (columns, padded_rows) = transpose of source (rows, columns), zeros behind.
template <typename T>
inline void load_transposed(float* __restrict destination, int64_t padded_rows, const T* source,
                            int64_t source_stride, int64_t rows, int64_t columns) {
    for (int64_t c = 0; c < columns; ++c) {
        float* __restrict out = destination + c * padded_rows;
        const T* __restrict in = source + c;
        for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<float>(in[r * source_stride]);
        for (int64_t r = rows; r < padded_rows; ++r) out[r] = 0.0f;
    }
}

template <typename T>
inline void store_rows(T* destination, int64_t destination_stride, const float* source, int64_t source_stride,
                       int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        T* __restrict out = destination + r * destination_stride;
        const float* __restrict in = source + r * source_stride;
        for (int64_t c = 0; c < columns; ++c) out[c] = in[c];
    }
}

}  // namespace train_qat
