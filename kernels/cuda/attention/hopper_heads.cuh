// What attention's kernels of Hopper's own instructions share, forward and backward: the warpgroups of a block, the rows of a
// head as tiles in shared memory, and their products.
//
// A tile is D / 64 parts of 64 columns, each with rows of 128 bytes, swizzled. Tensors stay in place: maps of rank 3, (column,
// position, sequence), fill with zeros what lies behind a sequence's end and store nothing there.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/cuda/attention/attention_heads.cuh"
#include "kernels/cuda/platform/hopper_ring.cuh"
#include "kernels/cuda/platform/tensor_map.cuh"

namespace train_qat::CU_BACKEND::attention {

constexpr int consumers = ring_consumers, consumer_warps = consumers * warpgroup_threads / 32;
constexpr int consumer_rows = 64;                     // of a tile: wgmma's
constexpr int tile_rows = consumers * consumer_rows;  // of keys; of queries in the forward pass
constexpr int part_columns = 64;                      // of a head: 128 bytes

// Bytes of a part of a tile of so many rows.
CU_DEVICE constexpr int part_bytes_of(int rows) {
    return rows * swizzle_row_bytes;
}
constexpr int part_bytes = tile_rows * swizzle_row_bytes, consumer_bytes = part_bytes / consumers;

// std::runtime_error, one line, for what -attention hopper has no kernel for.
inline void require_hopper_heads(DType dtype, int64_t head_dim) {
    if (dtype != DType::bfloat16)
        throw std::runtime_error("-attention hopper: has no kernel for " + std::string(name_of(dtype)) +
                                 ": give -dtype bf16 or -attention auto");
    if (head_dim != 64 && head_dim != 128)
        throw std::runtime_error("-attention hopper: has no kernel for head dimension " +
                                 std::to_string(head_dim) + ", only for 64 and 128: give -attention auto");
}

// Boxes of `rows` rows of a part. matrix: (B*T, columns), begins at a multiple of 16 bytes.
inline TensorMap head_map(const char* name, const bfloat16* matrix, int64_t columns,
                          const AttentionShape& shape, int rows) {
    const int64_t pitch = columns * size_of(DType::bfloat16);
    return make_tensor_map(matrix, {.name = name,
                                    .rank = 3,
                                    .extent = {columns, shape.sequence, shape.batch},
                                    .pitch = {pitch, shape.sequence * pitch},
                                    .box = {part_columns, rows, 1},
                                    .swizzled = true});
}

// ---- the producer, one thread

// `rows` rows of the `column_head`-th head of the map's matrix, from position `row` of sequence `batch` on, to land at `full`.
template <int parts, int rows>
CU_DEVICE void load_tile(unsigned char* tile, const TensorMap* map, int column_head, int row, int batch,
                         Barrier* full) {
    CU_UNROLL
    for (int part = 0; part < parts; ++part)
        tensor_load(tile + part * part_bytes_of(rows), map, (column_head * parts + part) * part_columns, row,
                    batch, full);
}

// ---- a consumer, one warpgroup

// scores (64, 2 count) = a bᵀ, of rows of tiles of a_rows and b_rows.
template <int D, int a_rows, int b_rows, int count>
CU_DEVICE void start_scores(float (&scores)[count], const unsigned char* a_tile,
                            const unsigned char* b_tile) {
    const uint64_t a = k_major_descriptor(a_tile), b = k_major_descriptor(b_tile);
    wgmma_fence();
    CU_UNROLL
    for (int k = 0; k < D; k += 16) {
        const int part = k / part_columns, within = k % part_columns * 2;
        wgmma(scores, advance_descriptor(a, part * part_bytes_of(a_rows) + within),
              advance_descriptor(b, part * part_bytes_of(b_rows) + within), k > 0);
    }
    wgmma_commit();
}

// out (64, 2 count) (+)= weights b, of all 16 steps rows of a tile.
template <int count, int steps>
CU_DEVICE void start_weighted_rows(float (&out)[count], const uint32_t (&weights)[steps][4],
                                   const unsigned char* b_tile, bool accumulate) {
    const uint64_t b = mn_major_descriptor(b_tile, part_bytes_of(16 * steps));
    wgmma_fence();
    CU_UNROLL
    for (int k = 0; k < steps; ++k)
        wgmma<Major::mn>(out, weights[k], advance_descriptor(b, k * 16 * swizzle_row_bytes),
                         accumulate || k > 0);
    wgmma_commit();
}

// A warp's 16 rows of a product (64, 2 count), rounded by round(low, high, half of the row) to a register of two, to shared memory. tile: its
// first part, of tiles of `rows` rows; first: the warp's first row there.
template <int rows, int count, typename Round>
CU_DEVICE void store_product(unsigned char* tile, int first, const float (&product)[count], Round&& round) {
    const int lane = lane_index(), row = first + lane % 16;
    CU_UNROLL
    for (int j = 0; j < count / 4; j += 2) {
        uint32_t pairs[4];
        CU_UNROLL
        for (int i = 0; i < 4; ++i)
            pairs[i] = round(product[4 * j + 2 * i], product[4 * j + 2 * i + 1], i % 2);
        stmatrix_x4(tile + j / 8 * part_bytes_of(rows) + swizzled_chunk(row, j % 8 + lane / 16), pairs);
    }
}

}  // namespace train_qat::CU_BACKEND::attention
