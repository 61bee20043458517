// How attention packs the operands of its products (products/elements.h):
//   left operand  (rows, inner)     [row][inner / width]
//   right operand (inner, columns)  [inner / width][column]
// The rows of a head lie far apart in memory, where processors do not see what will be read next: they are asked for ahead.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/products/transpose.h"
#include "kernels/cpu/products/vector_product.h"

namespace train_qat {

// What transpose_square turns. Operands are padded to whole squares of elements, in pairs to 32 numbers of the summed
// index.
constexpr int64_t square = 16, inner_step = 2 * square;

constexpr int64_t rows_ahead = 16;
template <typename T>
inline void prefetch_row(const T* row, int64_t count) {
    constexpr int64_t cache_line = 64;
    for (int64_t k = 0; k < count; k += cache_line / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(row + k);
}

// How far operands reach in the summed index, in elements. What lies beyond the numbers is zero.
template <typename Element>
inline int64_t room_for(int64_t count) {
    return round_up(elements_for<Element>(count), square);
}

// Whether numbers of T, in pairs where elements are, stand in memory as elements do.
template <typename Element, typename T>
inline constexpr bool stands_as_elements = sizeof(T) * element_width<Element> == sizeof(Element);

// Left operand from rows (rows, inner), zero up to packed_rows and packed_stride.
template <typename Element, typename T>
inline void pack_left(Element* __restrict packed, int64_t packed_rows, int64_t packed_stride,
                      const T* __restrict source, int64_t stride, int64_t rows, int64_t inner) {
    for (int64_t r = 0; r < rows; ++r) {
        const T* __restrict in = source + r * stride;
        Element* __restrict out = packed + r * packed_stride;
        prefetch_row(in + rows_ahead * stride, inner);
        if constexpr (stands_as_elements<Element, T>) {
            const size_t bytes = static_cast<size_t>(inner) * sizeof(T);
            const size_t room = static_cast<size_t>(packed_stride) * sizeof(Element);
            std::memcpy(static_cast<void*>(out), in, bytes);
            if (bytes < room) std::memset(reinterpret_cast<char*>(out) + bytes, 0, room - bytes);
        } else {
            static_assert(element_width<Element> == 1);
            for (int64_t k = 0; k < inner; ++k) out[k] = in[k];
            std::fill(out + inner, out + packed_stride, Element());
        }
    }
    std::fill(packed + rows * packed_stride, packed + packed_rows * packed_stride, Element());
}

// Right operand from rows (inner, columns), zero up to packed_rows rows of elements and packed_stride columns.
template <typename Element, typename T>
inline void pack_right(Element* packed, int64_t packed_rows, int64_t packed_stride, const T* source,
                       int64_t stride, int64_t inner, int64_t columns) {
    for (int64_t first = 0; first < inner; first += rows_ahead) {
        const int64_t count = std::min(rows_ahead, inner - first);
        const T* const rows = source + first * stride;
        for (int64_t i = 0; i < count; ++i) prefetch_row(rows + (i + rows_ahead) * stride, columns);
        pack_right(packed + first / element_width<Element> * packed_stride, packed_stride, rows, stride,
                   count, columns);
    }
    std::fill(packed + elements_for<Element>(inner) * packed_stride, packed + packed_rows * packed_stride,
              Element());
}

// packed (columns, rows) = the transpose of elements (rows, columns); both sizes multiples of 16.
template <typename Element>
inline void transpose_elements(Element* packed, int64_t packed_stride, const Element* source, int64_t stride,
                               int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r += square)
        for (int64_t c = 0; c < columns; c += square)
            transpose_square(packed + c * packed_stride + r, packed_stride, source + r * stride + c, stride);
}

// Right operand (inner, count) from rows (count, inner), zero up to packed_count columns. `rows` is memory for 16 packed
// rows.
template <typename Element, typename T>
inline void pack_right_transposed(Element* packed, int64_t packed_stride, const T* source, int64_t stride,
                                  int64_t count, int64_t packed_count, int64_t inner, Element* rows) {
    constexpr int64_t width = element_width<Element>;
    const int64_t room = room_for<Element>(inner);
    for (int64_t first = 0; first < packed_count; first += square) {
        const int64_t here = std::clamp<int64_t>(count - first, 0, square);
        const T* const from = source + first * stride;
        if constexpr (stands_as_elements<Element, T>)
            if (here == square && inner == room * width && stride % width == 0) {
                for (int64_t i = 0; i < square; ++i) prefetch_row(from + (i + rows_ahead) * stride, inner);
                transpose_elements(packed + first, packed_stride, reinterpret_cast<const Element*>(from),
                                   stride / width, square, room);
                continue;
            }
        pack_left(rows, square, room, from, stride, here, inner);
        transpose_elements(packed + first, packed_stride, rows, room, square, room);
    }
}

// Two vectors of a row of a left operand: neighbours of the summed index.
inline void store_left(float* destination, const FloatVector& first, const FloatVector& second) {
    store_vector(destination, first);
    store_vector(destination + vector_lanes, second);
}
#if defined(__AVX512BF16__)
inline void store_left(BFloat16Pair* destination, const FloatVector& first, const FloatVector& second) {
    const __m512bh pairs =
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first));
    std::memcpy(static_cast<void*>(destination), &pairs, sizeof pairs);
}
#endif

// The first `count` lanes, at most all, in the compute type.
template <typename T>
inline void store_lanes(T* destination, const FloatVector& vector, int64_t count) {
    if (count >= vector_lanes) {
        store_vector(destination, vector);
        return;
    }
    float lanes[vector_lanes];  // only here is the vector needed in memory
    store_vector(lanes, vector);
    for (int64_t lane = 0; lane < count; ++lane) destination[lane] = lanes[lane];
}

}  // namespace train_qat
