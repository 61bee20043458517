// Small dense products on tiles that sit in a core's caches, for attention: c (+)= a b with a float32 result.
//
// Operands are packed into elements (products/elements.h):
//   left operand  (rows, inner)     [row][inner / width]
//   right operand (inner, columns)  [inner / width][column]
#pragma once

#include "kernels/cpu/products/elements.h"

namespace train_qat {

// A block of c in registers: each step of the inner loop reads `vectors` vectors of b and broadcasts `rows`
// of a.
template <int rows, int vectors, typename Element>
inline void tile_block(float* c, int64_t c_stride, const Element* a, int64_t a_stride, const Element* b,
                       int64_t b_stride, int64_t inner, bool accumulate) {
    FloatVector sums[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v)
            sums[r][v] = accumulate ? load_vector(c + r * c_stride + v * vector_lanes) : FloatVector{};
    for (int64_t k = 0; k < inner; ++k)
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v)
                multiply_add(sums[r][v], a[r * a_stride + k], b[k * b_stride + v * vector_lanes]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store_vector(c + r * c_stride + v * vector_lanes, sums[r][v]);
}

template <int vectors, typename Element>
inline void tile_panel(float* c, int64_t c_stride, const Element* a, int64_t a_stride, const Element* b,
                       int64_t b_stride, int64_t rows, int64_t inner, bool accumulate) {
    int64_t r = 0;
    const auto blocks_of = [&]<int count>() {
        for (; r + count <= rows; r += count)
            tile_block<count, vectors>(c + r * c_stride, c_stride, a + r * a_stride, a_stride, b, b_stride,
                                       inner, accumulate);
    };
    blocks_of.template operator()<6>();
    blocks_of.template operator()<4>();
    blocks_of.template operator()<2>();
    blocks_of.template operator()<1>();
}

// c (rows, columns) (+)= a b. inner: in elements; columns: a multiple of 16; strides in elements.
template <typename Element>
inline void tile_multiply(float* c, int64_t c_stride, const Element* a, int64_t a_stride, const Element* b,
                          int64_t b_stride, int64_t rows, int64_t inner, int64_t columns, bool accumulate) {
    int64_t j = 0;
    for (; j + 64 <= columns; j += 64)
        tile_panel<4>(c + j, c_stride, a, a_stride, b + j, b_stride, rows, inner, accumulate);
    for (; j + 32 <= columns; j += 32)
        tile_panel<2>(c + j, c_stride, a, a_stride, b + j, b_stride, rows, inner, accumulate);
    for (; j < columns; j += 16)
        tile_panel<1>(c + j, c_stride, a, a_stride, b + j, b_stride, rows, inner, accumulate);
}

// ---- packing

// Left operand from rows (rows, inner): neighbours within a row become an element.
template <typename Element, typename T>
inline void pack_left(Element* __restrict packed, int64_t packed_stride, const T* __restrict source,
                      int64_t stride, int64_t rows, int64_t inner) {
    constexpr int64_t width = element_width<Element>;
    for (int64_t r = 0; r < rows; ++r) {
        const T* __restrict in = source + r * stride;
        Element* __restrict out = packed + r * packed_stride;
        const int64_t whole = inner / width;
        for (int64_t k = 0; k < whole; ++k) join(out[k], in[width * k], in[width * k + width - 1]);
        if (whole * width < inner) join(out[whole], in[inner - 1], T());
    }
}

// Right operand (inner, count) from its transpose (count, inner). Columns from count to packed_stride are
// zero.
template <typename Element, typename T>
inline void pack_right_transposed(Element* __restrict packed, int64_t packed_stride,
                                  const T* __restrict source, int64_t stride, int64_t count, int64_t inner) {
    constexpr int64_t width = element_width<Element>;
    for (int64_t k = 0; k < inner; k += width) {
        Element* __restrict out = packed + k / width * packed_stride;
        const bool whole = k + width <= inner;
        for (int64_t j = 0; j < count; ++j) {
            const T* in = source + j * stride + k;
            join(out[j], in[0], whole ? in[width - 1] : T());
        }
        for (int64_t j = count; j < packed_stride; ++j) join(out[j], T(), T());
    }
}

// Left operand (columns, inner) from rows (inner, columns): the summed index runs over the source's rows.
template <typename Element, typename T>
inline void pack_left_transposed(Element* __restrict packed, int64_t packed_stride,
                                 const T* __restrict source, int64_t stride, int64_t inner, int64_t columns) {
    constexpr int64_t width = element_width<Element>;
    for (int64_t k = 0; k < inner; k += width) {
        const T* __restrict first = source + k * stride;
        const T* __restrict second = source + (k + width - 1) * stride;
        const bool whole = k + width <= inner;
        for (int64_t c = 0; c < columns; ++c)
            join(packed[c * packed_stride + k / width], first[c], whole ? second[c] : T());
    }
}

// Rows of a float tile into the compute type.
template <typename T>
inline void store_rows(T* destination, int64_t destination_stride, const float* source, int64_t source_stride,
                       int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        T* __restrict out = destination + r * destination_stride;
        const float* __restrict in = source + r * source_stride;
        for (int64_t c = 0; c < columns; ++c) out[c] = in[c];
    }
}

// The same from a transposed source (columns, rows).
template <typename T>
inline void store_transposed(T* destination, int64_t destination_stride, const float* source,
                             int64_t source_stride, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
            destination[r * destination_stride + c] = source[c * source_stride + r];
}

}  // namespace train_qat
