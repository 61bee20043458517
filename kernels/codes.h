// Packed codes: the levels of a quantized weight as small unsigned integers, several to a byte. What the
// fused matmuls of the CUDA backend read, what an all-gather moves and what an export stores.
//
//     level = lowest_level + code * level_step,   code in [0, 2^bits)
//
// A row of K codes takes code_row_bytes(K, bits) bytes: code k is in byte k * bits / 8, in the bits from
// k * bits % 8 on (lowest first). Rows are padded with zero bits to a multiple of 16 bytes, so that every row
// can be copied in whole vectors.
#pragma once

#include <cstdint>

#include "kernels/grid.h"

namespace train_qat {

// Bits that a code of the grid takes: the power of two that holds its levels.
constexpr int code_bits(Grid grid) {
    switch (grid) {
        case Grid::binary:
            return 1;
        case Grid::ternary:
        case Grid::quaternary:
            return 2;
        case Grid::integer3:
        case Grid::integer4:
            return 4;
        case Grid::integer5:
        case Grid::integer6:
        case Grid::integer8:
            return 8;
        case Grid::none:
            break;
    }
    return 0;
}

constexpr float lowest_level(Grid grid) {
    switch (grid) {
        case Grid::binary:
        case Grid::ternary:
            return -1.0f;
        case Grid::quaternary:
            return -1.5f;
        case Grid::integer3:
            return -4.0f;
        case Grid::integer4:
            return -8.0f;
        case Grid::integer5:
            return -16.0f;
        case Grid::integer6:
            return -32.0f;
        case Grid::integer8:
            return -128.0f;
        case Grid::none:
            break;
    }
    return 0.0f;
}

constexpr float level_step(Grid grid) {
    return grid == Grid::binary ? 2.0f : 1.0f;
}

constexpr uint32_t code_mask(Grid grid) {
    return (1u << code_bits(grid)) - 1u;
}

// A NaN level has no code and becomes 0: whoever packs makes it visible in another place.
template <Grid grid>
TRAIN_QAT_HOST_DEVICE inline uint32_t code_of_level(float level) {
    constexpr float lowest = lowest_level(grid), inverse_step = 1.0f / level_step(grid);
    const float code = (level - lowest) * inverse_step;
    return code > 0.0f ? static_cast<uint32_t>(code) & code_mask(grid) : 0u;
}

template <Grid grid>
TRAIN_QAT_HOST_DEVICE inline float level_of_code(uint32_t code) {
    constexpr float lowest = lowest_level(grid), step = level_step(grid);
    return lowest + static_cast<float>(code) * step;
}

constexpr int64_t code_row_bytes(int64_t columns, int bits) {
    return (columns * bits + 127) / 128 * 16;
}

// Where the effective scales (rows, columns / group) float32 of a matrix with several groups per row begin,
// in bytes from its first code.
constexpr int64_t code_scales_offset(int64_t rows, int64_t columns, Grid grid) {
    return rows * code_row_bytes(columns, code_bits(grid));
}

}  // namespace train_qat
