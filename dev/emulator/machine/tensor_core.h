// mma_tile's arithmetic: the fragments of a warp's lanes become two small matrices, which one lane multiplies
// for all. Products of bfloat16 numbers are exact in float32 and their sums are rounded to it; a GPU may
// round sums otherwise.
#pragma once

#include <cstdint>

#include "dev/emulator/machine/sanitizers.h"
#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

TRAIN_QAT_NOT_SEEN inline float float_of_low_half(uint32_t packed) {
    packed <<= 16;
    float value;
    __builtin_memcpy(&value, &packed, sizeof value);
    return value;
}
TRAIN_QAT_NOT_SEEN inline float float_of_high_half(uint32_t packed) {
    packed &= 0xffff0000u;
    float value;
    __builtin_memcpy(&value, &packed, sizeof value);
    return value;
}

// Writes the running lane's part of a (M x 16) and b (16 x N), both row-major; the layout:
// kernels/cuda/platform/portable.cuh.
template <int M, int N>
TRAIN_QAT_NOT_SEEN inline void scatter_operands(const uint32_t (&a)[M / 16][4],
                                                const uint32_t (&b)[N / 8][2]) {
    static_assert(M % 16 == 0 && N % 8 == 0);
    Warp& warp = *context.warp;
    reserve_operands(warp, M * 16 + 16 * N);
    float* a_matrix = warp.operands;
    float* b_matrix = a_matrix + M * 16;
    const unsigned g = context.lane / 4, t = context.lane % 4;
    for (unsigned i = 0; i < M / 16; ++i)
        for (unsigned part = 0; part < 4; ++part) {
            float* pair = a_matrix + (16 * i + g + part % 2 * 8) * 16 + 2 * t + part / 2 * 8;
            pair[0] = float_of_low_half(a[i][part]);
            pair[1] = float_of_high_half(a[i][part]);
        }
    for (unsigned j = 0; j < N / 8; ++j)
        for (unsigned part = 0; part < 2; ++part) {
            float* column = b_matrix + (2 * t + part * 8) * N + 8 * j + g;
            column[0] = float_of_low_half(b[j][part]);
            column[N] = float_of_high_half(b[j][part]);
        }
}

// Rows [0, rows) and columns [0, 8 * vectors) of a product; all sums stay in registers.
template <int rows, int vectors, int N>
TRAIN_QAT_NOT_SEEN inline void multiply_strip(float* product, const float* a, const float* b) {
    typedef float Vector __attribute__((vector_size(32), aligned(4)));
    Vector sum[rows][vectors] = {};
    for (int k = 0; k < 16; ++k)
        for (int j = 0; j < vectors; ++j) {
            const Vector right = *reinterpret_cast<const Vector*>(b + k * N + 8 * j);
            for (int i = 0; i < rows; ++i) sum[i][j] += a[i * 16 + k] * right;
        }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) *reinterpret_cast<Vector*>(product + i * N + 8 * j) = sum[i][j];
}

template <int M, int N>
TRAIN_QAT_NOT_SEEN inline void multiply_operands() {
    Warp& warp = *context.warp;
    reserve_product(warp, M * N);
    const float* a = warp.operands;
    const float* b = a + M * 16;
    constexpr int rows = 4, vectors = 4, columns = 8 * vectors;
    for (int i = 0; i < M; i += rows) {
        float* out = warp.product + i * N;
        for (int j = 0; j + columns <= N; j += columns)
            multiply_strip<rows, vectors, N>(out + j, a + i * 16, b + j);
        constexpr int rest = N % columns / 8, first = N - 8 * rest;
        if constexpr (rest > 0) multiply_strip<rows, rest, N>(out + first, a + i * 16, b + first);
    }
}

// Adds the running lane's part.
template <int M, int N>
TRAIN_QAT_NOT_SEEN inline void add_product(float (&sum)[M / 16][N / 8][4]) {
    const unsigned g = context.lane / 4, t = context.lane % 4;
    const float* product = context.warp->product;
    for (unsigned i = 0; i < M / 16; ++i)
        for (unsigned j = 0; j < N / 8; ++j) {
            const float* upper = product + (16 * i + g) * N + 8 * j + 2 * t;
            const float* lower = upper + 8 * N;
            sum[i][j][0] += upper[0];
            sum[i][j][1] += upper[1];
            sum[i][j][2] += lower[0];
            sum[i][j][3] += lower[1];
        }
}

}  // namespace train_qat::emulator
