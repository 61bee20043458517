// What the tensor-core matmuls are made of: tiles of operands in shared memory, their way from there into the
// registers of mma.m16n8k16, and the way of the sums out into memory.
//
// Every operand has an outer dimension, the product's rows or columns, and the inner one that is summed over.
// Its tile lies in shared memory as it does in global memory, row by row, and ldmatrix transposes where the
// inner dimension runs across rows. A row's vectors of 8 elements (16 bytes) change places by an exclusive or
// with the row's number, such that the same vector of 8 neighbouring rows - what ldmatrix reads for one 8x8
// matrix - lies in 8 different groups of four banks, and so do 8 neighbouring vectors of rows, which is what
// copies and stores move. None of them meets a bank conflict.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

constexpr int tile_depth = 32;  // of the inner dimension, in one step of the main loop

// ---- the order of blocks

// Blocks that run at the same time should share what they read through the L2 cache: they go down a band of
// `band_height` tiles, then down its next column.
constexpr int band_height = 8;

struct TilePlace {
    int row, column;  // in tiles
};
CU_DEVICE TilePlace place_in_band(int index, int tile_rows, int tile_columns) {
    const int band = index / (band_height * tile_columns), first_row = band * band_height;
    const int height = tile_rows - first_row < band_height ? tile_rows - first_row : band_height;
    const int within = index - first_row * tile_columns;
    return {first_row + within % height, within / height};
}

// ---- tiles of operands

// Which dimension of an operand runs along the rows of memory.
enum class Order : uint8_t {
    inner_along_rows,  // (outer, inner)
    outer_along_rows,  // (inner, outer)
};

// extent: of the outer dimension.
template <Order tile_order, int extent>
struct OperandTile {
    static constexpr Order order = tile_order;
    static constexpr int rows = order == Order::inner_along_rows ? extent : tile_depth;
    static constexpr int row_vectors = (order == Order::inner_along_rows ? tile_depth : extent) / 8;
    static constexpr int elements = extent * tile_depth;
    static_assert(row_vectors == 4 || row_vectors % 8 == 0);

    // Of a row's vector, in elements.
    CU_DEVICE static int offset(int row, int vector) {
        // Rows of 64 bytes share a line of all banks by twos.
        const int place = row_vectors == 4 ? vector ^ (row / 2 & 3) : vector ^ (row & 7);
        return (row * row_vectors + place) * 8;
    }
};

// 16 x 16 of an operand, as four matrices. A lane gives the address of one row of one of them: outer_half and
// inner_half say in which half of the 16 x 16 that one lies.
template <typename Tile>
CU_DEVICE void load_square(uint32_t (&registers)[4], const bfloat16* tile, int outer, int outer_half,
                           int inner, int inner_half) {
    const int row = lane_index() % 8;
    if constexpr (Tile::order == Order::inner_along_rows)
        ldmatrix_x4(registers, tile + Tile::offset(outer + 8 * outer_half + row, inner / 8 + inner_half));
    else
        ldmatrix_x4_trans(registers,
                          tile + Tile::offset(inner + 8 * inner_half + row, outer / 8 + outer_half));
}

// M rows of the product and 16 of the inner dimension.
template <typename Tile, int M>
CU_DEVICE void load_left(uint32_t (&a)[M / 16][4], const bfloat16* tile, int row, int inner) {
    const int lane = lane_index();
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i)
        load_square<Tile>(a[i], tile, row + 16 * i, lane / 8 % 2, inner, lane / 16);
}

// N columns of the product and 16 of the inner dimension.
template <typename Tile, int N>
CU_DEVICE void load_right(uint32_t (&b)[N / 8][2], const bfloat16* tile, int column, int inner) {
    const int lane = lane_index();
    CU_UNROLL
    for (int j = 0; j < N / 8; j += 2) {
        uint32_t four[4];
        load_square<Tile>(four, tile, column + 8 * j, lane / 16, inner, lane / 8 % 2);
        b[j][0] = four[0];
        b[j][1] = four[1];
        b[j + 1][0] = four[2];
        b[j + 1][1] = four[3];
    }
}

// sum += the warp's rows of the left tile times its columns of the right one. Operands are loaded one step of
// mma ahead.
template <typename LeftTile, typename RightTile, int M, int N>
CU_DEVICE void multiply_tiles(float (&sum)[M / 16][N / 8][4], const bfloat16* left, const bfloat16* right,
                              int row, int column) {
    uint32_t a[2][M / 16][4], b[2][N / 8][2];
    load_left<LeftTile, M>(a[0], left, row, 0);
    load_right<RightTile, N>(b[0], right, column, 0);
    CU_UNROLL
    for (int inner = 0; inner < tile_depth; inner += 16) {
        const int now = inner / 16 % 2;
        if (inner + 16 < tile_depth) {
            load_left<LeftTile, M>(a[1 - now], left, row, inner + 16);
            load_right<RightTile, N>(b[1 - now], right, column, inner + 16);
        }
        mma_tile<M, N>(sum, a[now], b[now]);
    }
}

// ---- the product

// Where a product goes: (rows, columns), bfloat16 or float32.
struct Product {
    void* data;
    int rows, columns;
    bool is_float32;
    bool accumulate;  // only float32
    bool vectors;     // four neighbouring numbers are one access
};

// Four neighbouring numbers of a row, of which the first `count` exist: all, or none, where they are one
// access.
template <typename T>
CU_DEVICE void store_four(T* out, Vector<float, 4> value, int count, bool vectors, bool accumulate) {
    if (vectors) {
        if (count <= 0) return;
        const Vector<T, 4> before = accumulate ? load_vector<4>(out) : Vector<T, 4>{};
        Vector<T, 4> after;
        CU_UNROLL
        for (int e = 0; e < 4; ++e) after[e] = static_cast<T>(static_cast<float>(before[e]) + value[e]);
        store_vector<4>(out, after);
        return;
    }
    CU_UNROLL
    for (int e = 0; e < 4; ++e) {
        if (e >= count) return;
        const float before = accumulate ? static_cast<float>(load(out + e)) : 0.0f;
        store(out + e, static_cast<T>(before + value[e]));
    }
}

// The warp's M x N sums, the first of which belongs to (first_row, first_column), 16 rows at a time through
// the warp's part of shared memory, 16 x N floats: neighbouring lanes then store neighbouring numbers of a
// row.
template <int M, int N>
CU_DEVICE void store_product(const Product& out, float* staging, const float (&sum)[M / 16][N / 8][4],
                             int first_row, int first_column) {
    constexpr int row_lanes = N / 4;
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    // Vectors of a row change places like those of operand tiles do, here for accesses of 8 bytes.
    const auto place = [](int row, int vector) { return row * N + (vector ^ (row & 3) << 1) * 4; };
    const int column = first_column + lane % row_lanes * 4, count = out.columns - column;
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i) {
        CU_UNROLL
        for (int half = 0; half < 2; ++half) {
            CU_UNROLL
            for (int j = 0; j < N / 8; ++j)
                store_shared_vector<2>(staging + place(8 * half + g, 2 * j + t / 2) + t % 2 * 2,
                                       Vector<float, 2>{sum[i][j][2 * half], sum[i][j][2 * half + 1]});
        }
        warp_sync();
        for (int r = lane / row_lanes; r < 16; r += 32 / row_lanes) {
            const int row = first_row + 16 * i + r;
            if (row >= out.rows) break;
            const Vector<float, 4> value = load_shared_vector<4>(staging + place(r, lane % row_lanes));
            const int64_t element = int64_t{row} * out.columns + column;
            if (out.is_float32)
                store_four(static_cast<float*>(out.data) + element, value, count, out.vectors,
                           out.accumulate);
            else
                store_four(static_cast<bfloat16*>(out.data) + element, value, count, out.vectors, false);
        }
        warp_sync();
    }
}

}  // namespace train_qat::CU_BACKEND
