// Packed codes (kernels/codes.h) as an operand of tile_matmul: a source (matmul_operands.cuh) that turns them into levels
// on their way into the tensor cores.
//     one scale per row        the tile holds the levels q, exact in bfloat16; the scale stays outside of the product
//     several scales per row   it holds s * q rounded to bfloat16, as in kernels/weights.h; in float32 s * q is exact,
//                              since a float16 scale has 11 bits and a level at most 8
// Eight neighbouring weights of a row belong to one thread; they have one scale, since groups are multiples of eight.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/codes.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/grid.h"

namespace train_qat::CU_BACKEND {

// function.template operator()<bits>() with the bits that a code of the grid takes: 1, 2, 4 or 8.
template <typename Function>
void with_code_bits(Grid grid, const Function& function) {
    switch (code_bits(grid)) {
        case 1:
            return function.template operator()<1>();
        case 2:
            return function.template operator()<2>();
        case 4:
            return function.template operator()<4>();
        default:
            return function.template operator()<8>();
    }
}

// ---- scales

// (rows, groups) float32; null: all are one.
struct WeightScales {
    const float* data;
    int groups;       // per row
    int group_shift;  // a group has 2^group_shift columns; a whole row: more than 2^30

    CU_DEVICE float at(int row, int column) const {
        return data == nullptr ? 1.0f : load(data + int64_t{row} * groups + (column >> group_shift));
    }
};

inline WeightScales weight_scales(const float* data, int64_t columns, int64_t group) {
    constexpr int whole_row = 31;
    return {data, static_cast<int>(columns / group),
            group < columns ? std::countr_zero(static_cast<uint64_t>(group)) : whole_row};
}

// ---- codes

// Eight codes of `bits` bits: one load.
template <int bits>
using EightCodes = std::conditional_t<
    bits == 8, uint64_t,
    std::conditional_t<bits == 4, uint32_t, std::conditional_t<bits == 2, uint16_t, uint8_t>>>;

// Rows of codes as in kernels/codes.h: padded to 16 bytes, so aligned for every load here.
template <int bits>
struct PackedCodes {
    const unsigned char* codes;
    int rows, columns;
    int64_t row_bytes;
    WeightScales scales;  // effective ones
    float level_step;
    float level_offset;  // lowest level - 2^15 * level_step

    struct Raw {
        EightCodes<bits> codes;
        float scale;
    };
    CU_DEVICE Raw fetch(int row, int column) const {
        row = std::min(row, rows - 1);
        column = std::min(column, (columns - 1) / 8 * 8);
        const unsigned char* from = codes + row * row_bytes + column / 8 * bits;
        return {load(reinterpret_cast<const EightCodes<bits>*>(from)), scales.at(row, column)};
    }
    // 2^15 + code by the bits of a float: a conversion of integers would take four times as long as other
    // arithmetic. With it as the factor of level_step, the sum is exact.
    CU_DEVICE float level(EightCodes<bits> word, int i) const {
        constexpr uint32_t mask = (1u << bits) - 1u, two_to_15 = 0x47000000u;
        const auto code = static_cast<uint32_t>(word >> i * bits) & mask;
        return __uint_as_float(two_to_15 | code << 8) * level_step + level_offset;
    }
    CU_DEVICE Vector<uint32_t, 4> convert(const Raw& raw) const {
        Vector<uint32_t, 4> result;
        CU_UNROLL
        for (int i = 0; i < 4; ++i)
            result[i] =
                pack_bfloat16(level(raw.codes, 2 * i) * raw.scale, level(raw.codes, 2 * i + 1) * raw.scale);
        return result;
    }
};

}  // namespace train_qat::CU_BACKEND
