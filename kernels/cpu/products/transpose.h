// Squares of sixteen by sixteen four-byte elements, transposed in vector registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace train_qat {

using WordVector = uint32_t __attribute__((vector_size(64)));

// destination[j][i] = source[i][j] for i, j < 16; strides in elements. Element: of four bytes.
template <typename Element>
inline void transpose_square(Element* destination, int64_t destination_stride, const Element* source,
                             int64_t source_stride) {
    static_assert(sizeof(Element) == 4);
#if !defined(__AVX512F__)
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) destination[j * destination_stride + i] = source[i * source_stride + j];
#else
    WordVector rows[16], next[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], source + i * source_stride, sizeof rows[i]);
        // Four times rows i and i + 8 are shuffled into rows 2i and 2i + 1, a number of one beside one of the other: each
        // time the bits of (row, column), read as one number of eight bits, turn by one place; after four they are
        // (column, row).
#pragma GCC unroll 4
    for (int turn = 0; turn < 4; ++turn) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            next[2 * i] = __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                                  21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12,
                                                      28, 13, 29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(destination + i * destination_stride, &rows[i], sizeof rows[i]);
#endif
}

}  // namespace train_qat
