// Packed codes in the order in which a warpgroup's threads take them as wgmma's operand a, for hopper_code_matmul.cuh in place of
// RowCodes: a load, a shift, a mask and a multiply-add for each register, and no permutations. The input gradient reads an array
// of its own, of qᵀ, and transposes nothing. The price: a second array of codes, and packing both once a step.
//
// A block of 64 features by 64 of the inner dimension is 512 bits bytes without gaps. Thread i of 128 has registers 0 ... 15 of
// it, four of each 16 of the inner dimension; number q's two codes are `bits` bits of word q bits / 16 each, from bit
// bits (q % (16 / bits)) on and 16 bits above. The words of a thread lie as vectors of 16 bytes, or of less with less than 4 bits:
// vector by vector, thread by thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/hopper_matmul/hopper_code_launch.cuh"
#include "kernels/cuda/matmul/packed_codes.cuh"

namespace train_qat::CU_BACKEND {

template <int bits_, MatmulForm form>
struct FragmentCodes {
    static constexpr int bits = bits_;
    static constexpr bool forward = form == MatmulForm::nt, transposed = false;
    static constexpr int words = bits, width = std::min(bits, 4);  // of a thread; of a vector
    static constexpr int tile_bytes = 512 * bits, row_bytes = 128, tile_rows = tile_bytes / row_bytes;
    static constexpr int per_word = 16 / bits;       // registers
    static constexpr int place = bits <= 2 ? 1 : 0;  // of a code in a mantissa (CodeLevels)
    using Levels = CodeLevels<bits, place, place>;

    // Codes as rows of 128 bytes: dimension 1 along the inner dimension, 2 along features.
    CU_DEVICE static void fetch(void* tile, const TensorMap* codes, int feature, int inner, Barrier* full) {
        tensor_load(tile, codes, 0, inner / 64 * tile_rows, feature / 64, full);
    }
    CU_DEVICE static void load(uint32_t (&a)[4][4], const unsigned char* tile, int /*feature*/,
                               const Levels& levels) {
        const auto* const from =
            reinterpret_cast<const uint32_t*>(tile) + threadIdx.x % warpgroup_threads * width;
        CU_UNROLL
        for (int first = 0; first < words; first += width) {
            const Vector<uint32_t, width> part = load_shared_vector<width>(from + first * warpgroup_threads);
            CU_UNROLL
            for (int q = first * per_word; q < (first + width) * per_word; ++q) {
                const uint32_t word = part[q / per_word - first];
                const int shift = bits * (q % per_word) - place;
                a[q / 4][q % 4] = levels.levels(shift < 0 ? word << -shift : word >> shift);
            }
        }
    }
};

// codes (features / 64, inner / 64, 128 threads, bits words), rounded up, from those of a weight row by row. A thread a word.
template <int bits, MatmulForm form>
__global__ void pack_fragments(uint32_t* out, const unsigned char* codes, int rows, int columns,
                               int64_t row_bytes, int inner_blocks, int64_t words) {
    using Codes = FragmentCodes<bits, form>;
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= words) return;
    constexpr int block_words = warpgroup_threads * bits, vector_words = warpgroup_threads * Codes::width;
    const int64_t block = index / block_words;
    const int within = static_cast<int>(index % block_words),
              inner_block = static_cast<int>(block % inner_blocks);
    const int feature_block = static_cast<int>(block / inner_blocks);
    const int thread = within % vector_words / Codes::width;
    const int word = within / vector_words * Codes::width + within % Codes::width;
    uint32_t result = 0;
    for (int i = 0; i < Codes::per_word; ++i) {
        const int q = word * Codes::per_word + i, step = q / 4, r = q % 4;
        for (int half = 0; half < 2; ++half) {
            const int feature = feature_block * 64 + thread / 32 * 16 + thread % 32 / 4 + r % 2 * 8;
            const int inner = inner_block * 64 + step * 16 + thread % 4 * 2 + r / 2 * 8 + half;
            const int row = Codes::forward ? feature : inner, column = Codes::forward ? inner : feature;
            if (row >= rows || column >= columns) continue;
            const uint32_t byte = load(codes + row * row_bytes + column * bits / 8);
            const uint32_t code = byte >> column * bits % 8 & ((1u << bits) - 1u);
            result |= code << (i * bits + half * 16);
        }
    }
    store(out + index, result);
}

// A weight's codes in this order, for one form; one scale per row.
struct FragmentArray {
    uint32_t* words = nullptr;
    int64_t feature_blocks = 0, inner_blocks = 0;
    int64_t bytes(int bits) const { return feature_blocks * inner_blocks * 512 * bits; }
};

inline FragmentArray fragment_array(MatmulForm form, const ComputeWeight& weight) {
    const bool forward = form == MatmulForm::nt;
    return {nullptr, blocks_for(forward ? weight.rows : weight.columns, 64),
            blocks_for(forward ? weight.columns : weight.rows, 64)};
}

template <MatmulForm form>
void pack_fragment_array(CuStream stream, const FragmentArray& array, const ComputeWeight& weight) {
    with_code_bits(weight.codes, [&]<int bits>() {
        constexpr int threads = 256;
        const int64_t words = array.bytes(bits) / 4;
        CU_LAUNCH((pack_fragments<bits, form>), blocks_for(words, threads), threads, 0, stream, array.words,
                  static_cast<const unsigned char*>(weight.storage), static_cast<int>(weight.rows),
                  static_cast<int>(weight.columns), code_row_bytes(weight.columns, bits),
                  static_cast<int>(array.inner_blocks), words);
    });
}

// out = left q, or left qᵀ.
template <MatmulForm form>
void multiply_fragments(Device& device, const Tensor& out, const Tensor& left, const ComputeWeight& weight,
                        const FragmentArray& array, const CodePlan& plan) {
    with_code_bits(weight.codes, [&]<int bits>() {
        using Codes = FragmentCodes<bits, form>;
        const int64_t pitch = array.inner_blocks * Codes::tile_bytes;
        const TensorMap map = make_tensor_map(
            reinterpret_cast<const uint8_t*>(array.words),
            {.name = "the codes",
             .rank = 3,
             .extent = {Codes::row_bytes, array.inner_blocks * Codes::tile_rows, array.feature_blocks},
             .pitch = {Codes::row_bytes, pitch},
             .box = {Codes::row_bytes, Codes::tile_rows, 1},
             .swizzled = false});
        const typename Codes::Levels levels(weight.codes);
        if (plan.tokens == CodePlan::many)
            launch_code_matmul<CodeMatmul<Codes, false, CodePlan::many>>(device, out, left, map, levels, {},
                                                                         1);
        else
            launch_code_matmul<CodeMatmul<Codes, false, CodePlan::few>>(device, out, left, map, levels, {},
                                                                        plan.splits);
    });
}

}  // namespace train_qat::CU_BACKEND
