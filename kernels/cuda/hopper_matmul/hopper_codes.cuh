// Packed codes (kernels/codes.h) as wgmma's operand a in registers. Rows of codes are as they are in memory: no second
// layout, no second copy of the levels.
//
// A register of a holds two neighbours of a row. A byte permutation brings the codes of both into its two halves, a mask
// and 0x4300 make each the mantissa of 128,
//     code in bits [p, p + bits) of the mantissa of 128  =  128 + code 2^p
// and one multiply-add makes any affine grid of that, exactly:
//     level = (128 + code 2^p) (step / 2^p) + (lowest - 128 step / 2^p)
// with a p for each half. p = 1 at least for 1 and 2 bits: below, lowest - 128 step has more than bfloat16's 8 bits.
// Codes of 8 bits are one bit longer than the mantissa. That bit, in the place of the lowest bit of lowest - 128's exponent,
// makes -256 a -128, which is what it is worth; grids of 5 and 6 bits never set it.
// Four instructions for each register, and a load for four of them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/codes.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/platform/hopper.cuh"

namespace train_qat::CU_BACKEND {

// 64 x 64 codes in shared memory, row by row.
template <int bits>
struct CodeTile {
    static constexpr int extent = 64;
    static constexpr int row_bytes = bits == 1 ? 16 : extent * bits / 8;  // bulk copies bring no less than 16
    static constexpr int bytes = extent * row_bytes;
};

// Levels of a grid from codes of `bits` bits: the constants above, of the low and the high half of a register.
template <int bits, int low_place = bits <= 2 ? 1 : 0, int high_place = bits <= 2 ? 1 + bits : 0>
struct CodeLevels {
    uint32_t factor, offset;
    // 128 in both halves. As an argument of the kernel it is a number that the compiler does not know: the mask, which it
    // does, and this one then go into one instruction.
    uint32_t base = 0x43004300u;

    explicit CodeLevels(Grid grid)
        : factor(of_halves([grid](float unit) { return level_step(grid) / unit; })),
          offset(of_halves(
              [grid](float unit) { return lowest_level(grid) - 128.0f * level_step(grid) / unit; })) {}

    // Of the pair of codes that code_pairs has found.
    CU_DEVICE uint32_t levels(uint32_t pair) const {
        constexpr uint32_t code = bits == 8 ? 0x7fu : (1u << bits) - 1u;
        constexpr uint32_t mask = code << high_place << 16 | code << low_place;
        constexpr uint32_t eighth_bits = bits == 8 ? 0x00800080u : 0u;
        return fma_bfloat16((pair & mask) | base, factor, offset ^ (pair & eighth_bits));
    }

  private:
    template <typename Constant>
    static uint32_t of_halves(const Constant& constant) {
        const auto number = [&](int place) {
            return uint32_t{bfloat16(constant(static_cast<float>(1 << place))).bits};
        };
        return number(high_place) << 16 | number(low_place);
    }
};

// Of the 16 codes of a row from `codes` on, those that this lane has in operand a: numbers 2t and 2t + 1, and 2t + 8 and
// 2t + 9, t = lane % 4. In each half the code is where CodeLevels wants it, among bits of others.
template <int bits>
CU_DEVICE void code_pairs(uint32_t& first, uint32_t& second, const unsigned char* codes) {
    const uint32_t t = static_cast<uint32_t>(lane_index()) % 4;
    if constexpr (bits <= 2) {
        using Word = std::conditional_t<bits == 1, uint16_t, uint32_t>;
        const uint32_t word = load_shared(reinterpret_cast<const Word*>(codes));
        // Code 2t to bit 1.
        const uint32_t right = (2 * bits * t + 31) % 32, turned = word >> right | word << (32 - right);
        first = permute_bytes(turned, turned, 0x0000);
        second = permute_bytes(turned, turned, bits == 1 ? 0x1111 : 0x2222);
    } else if constexpr (bits == 4) {
        const Vector<uint32_t, 2> words = load_shared_vector<2>(reinterpret_cast<const uint32_t*>(codes));
        const uint32_t selector = 0x4400 + 0x1111 * t;
        first = permute_bytes(words[0], words[0] >> 4, selector);
        second = permute_bytes(words[1], words[1] >> 4, selector);
    } else {
        static_assert(bits == 8);
        const Vector<uint32_t, 4> words = load_shared_vector<4>(reinterpret_cast<const uint32_t*>(codes));
        const uint32_t selector = 0x1100 + 0x2222 * t;
        first = permute_bytes(words[0], words[1], selector);
        second = permute_bytes(words[2], words[3], selector);
    }
}

// The levels of 16 rows and 16 columns of a tile from (row, column) on, as operand a with those rows.
template <int bits>
CU_DEVICE void load_levels(uint32_t (&a)[4], const unsigned char* tile, int row, int column,
                           const CodeLevels<bits>& levels) {
    CU_UNROLL
    for (int half = 0; half < 2; ++half) {
        const int place = row + lane_index() / 4 + 8 * half;
        uint32_t first, second;
        code_pairs<bits>(first, second, tile + place * CodeTile<bits>::row_bytes + column * bits / 8);
        a[half] = levels.levels(first);
        a[2 + half] = levels.levels(second);
    }
}

// Times the scale of each row, g = lane / 4 and g + 8, rounded to bfloat16.
CU_DEVICE void scale_levels(uint32_t (&a)[4], float scale, float scale_8_below) {
    CU_UNROLL
    for (int i = 0; i < 4; ++i) {
        const float s = i % 2 == 0 ? scale : scale_8_below;
        a[i] = pack_bfloat16(low_bfloat16(a[i]) * s, high_bfloat16(a[i]) * s);
    }
}

// Rows become columns.
CU_DEVICE void transpose_levels(uint32_t (&a)[4]) {
    const uint32_t right = transpose_8x8(a[2]);
    a[0] = transpose_8x8(a[0]);
    a[2] = transpose_8x8(a[1]);
    a[1] = right;
    a[3] = transpose_8x8(a[3]);
}

// How codes lie in memory, and how they come to a consumer: here row by row. form: nt, features are rows of q; nn, its columns.
template <int bits_, MatmulForm form>
struct RowCodes {
    static constexpr int bits = bits_;
    static constexpr bool forward = form == MatmulForm::nt;
    static constexpr bool transposed = !forward;  // load leaves rows of q where features should be
    static constexpr int tile_bytes = CodeTile<bits>::bytes;
    using Levels = CodeLevels<bits>;

    // Brings those of 64 features and 64 neighbours of the inner dimension.
    CU_DEVICE static void fetch(void* tile, const TensorMap* codes, int feature, int inner, Barrier* full) {
        const int row = forward ? feature : inner, column = forward ? inner : feature;
        tensor_load(tile, codes, column / 8 * bits, row, full);
    }
    // The levels of 16 features of a tile, 16 of the inner dimension at a time.
    CU_DEVICE static void load(uint32_t (&a)[4][4], const unsigned char* tile, int feature,
                               const Levels& levels) {
        CU_UNROLL
        for (int step = 0; step < 4; ++step)
            load_levels<bits>(a[step], tile, forward ? feature : 16 * step, forward ? 16 * step : feature,
                              levels);
    }
};

}  // namespace train_qat::CU_BACKEND
