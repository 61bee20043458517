// Quantized weights as operands of tile_matmul: sources (matmul_operands.cuh) that turn packed codes, or
// master weights, into levels on their way into the tensor cores.
//
// One scale per row: the tile holds the levels q, exact in bfloat16, and the scale stays outside of the
// product. Several scales per row: it holds s * q rounded to bfloat16, as in kernels/backend.h. (In float32 s
// * q is exact: a float16 scale has 11 bits, a level at most 8.)
//
// Eight neighbouring weights of a row belong to one thread; they have one scale, since groups are multiples
// of eight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/codes.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/grid.h"

namespace train_qat::CU_BACKEND {

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

// ---- packed codes

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

// ---- master weights

// Master: float or bfloat16. aligned: eight weights are whole accesses of 16 bytes.
template <typename Master, Grid grid, bool aligned>
struct MasterWeights {
    const Master* weights;
    int rows, columns;
    WeightScales scales;  // as the optimizer has them
    bool grouped;         // several scales per row

    static constexpr int width = 16 / sizeof(Master), parts = 8 / width;
    struct Raw {
        Vector<Master, width> part[parts];
        float scale;
    };
    CU_DEVICE Raw fetch(int row, int column) const {
        row = std::min(row, rows - 1);
        column = std::min(column, (columns - 1) / 8 * 8);
        const Master* from = weights + int64_t{row} * columns;
        Raw raw;
        CU_UNROLL
        for (int p = 0; p < parts; ++p) {
            const int first = column + p * width;
            if constexpr (aligned) {
                raw.part[p] = load_vector<width>(from + first);
            } else {
                CU_UNROLL
                for (int e = 0; e < width; ++e)
                    raw.part[p][e] = load(from + std::min(first + e, columns - 1));
            }
        }
        raw.scale = scales.at(row, column);
        return raw;
    }
    CU_DEVICE Vector<uint32_t, 4> convert(const Raw& raw) const {
        const float scale = effective_scale(raw.scale), factor = grouped ? scale : 1.0f;
        const auto value = [&](int i) {
            return GridTraits<grid>::level(static_cast<float>(raw.part[i / width][i % width]) / scale) *
                   factor;
        };
        Vector<uint32_t, 4> result;
        CU_UNROLL
        for (int i = 0; i < 4; ++i) result[i] = pack_bfloat16(value(2 * i), value(2 * i + 1));
        return result;
    }
};

}  // namespace train_qat::CU_BACKEND
