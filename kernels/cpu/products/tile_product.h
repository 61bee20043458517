// Products of rows with a panel in matrix tiles (AMX): 32 x 32 sums in four tiles; a step of 32 numbers loads two tiles of
// either operand for four multiplications, so that loads take half the time of the arithmetic.
#pragma once

#include "kernels/cpu/platform/matrix_tiles.h"
#include "kernels/cpu/products/transpose.h"
#include "kernels/cpu/products/vector_product.h"

namespace train_qat {

inline constexpr int64_t steps_of_tile = tile_depth / 2;          // pairs
inline constexpr int64_t block_of_tiles = 2 * tile_rows;          // rows and columns of a block of sums
inline constexpr int64_t tile_pairs = tile_rows * steps_of_tile;  // elements of a tile

// The left operand in tiles of 16 rows by 16 pairs: tile (i, s) begins at data + i * next_rows + s * next_steps.
struct TilesOnLeft {
    const BFloat16Pair* data;
    int64_t stride, next_rows, next_steps;  // in elements
    // Row-major rows, all of which exist up to whole blocks, as do the pairs.
    static TilesOnLeft of_rows(const BFloat16Pair* rows, int64_t stride) {
        return {rows, stride, tile_rows * stride, steps_of_tile};
    }
    // Whole tiles one after the other, all steps of 16 rows together.
    static TilesOnLeft of_tiles(const BFloat16Pair* tiles, int64_t tile_steps) {
        return {tiles, steps_of_tile, tile_steps * tile_pairs, tile_pairs};
    }
    TilesOnLeft at_step(int64_t step) const {
        return {data + step * next_steps, stride, next_rows, next_steps};
    }
    TilesOnLeft from(int64_t tile_row) const {
        return {data + tile_row * next_rows, stride, next_rows, next_steps};
    }
};

// sums (32, 32) = left (32 rows) times 32 columns of a panel. both: else only the first 16 rows are wanted.
template <typename Tiles, bool both>
inline void tile_block(float* sums, const TilesOnLeft& left, const BFloat16Pair* panel, int64_t tile_steps) {
    constexpr int64_t word = sizeof(float), sum_stride = block_of_tiles * word,
                      panel_stride = panel_columns * word;
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    if constexpr (both) {
        Tiles::template zero<2>();
        Tiles::template zero<3>();
    }
    for (int64_t step = 0; step < tile_steps; ++step) {
        const BFloat16Pair* const rows = left.data + step * left.next_steps;
        const BFloat16Pair* const columns = panel + step * steps_of_tile * panel_columns;
        Tiles::template load<4>(rows, left.stride * word);
        Tiles::template load<6>(columns, panel_stride);
        Tiles::template multiply_add<0, 4, 6>();
        Tiles::template load<7>(columns + tile_columns, panel_stride);
        Tiles::template multiply_add<1, 4, 7>();
        if constexpr (both) {
            Tiles::template load<5>(rows + left.next_rows, left.stride * word);
            Tiles::template multiply_add<2, 5, 6>();
            Tiles::template multiply_add<3, 5, 7>();
        }
    }
    Tiles::template store<0>(sums, sum_stride);
    Tiles::template store<1>(sums + tile_columns, sum_stride);
    if constexpr (both) {
        float* const lower = sums + tile_rows * block_of_tiles;
        Tiles::template store<2>(lower, sum_stride);
        Tiles::template store<3>(lower + tile_columns, sum_stride);
    }
}

// One row of a block of sums, of which `columns` exist.
template <typename T>
inline void store_block_row(T* destination, const float* sums, int64_t columns, bool accumulate) {
    const FloatVector vectors[] = {load_vector(sums), load_vector(sums + vector_lanes)};
    if (columns < block_of_tiles) {
        store_some_sums(destination, vectors, columns, accumulate);
        return;
    }
    store_sums(destination, vectors[0], accumulate);
    store_sums(destination + vector_lanes, vectors[1], accumulate);
}

// out (rows, up to 64 columns) (+)= left panel. Whoever calls has configured the tiles.
template <typename Tiles, typename T>
inline void tile_product(const ProductRows<T>& out, const TilesOnLeft& left, const BFloat16Pair* panel,
                         int64_t rows, int64_t tile_steps, bool accumulate) {
    alignas(64) float sums[block_of_tiles * block_of_tiles];
    for (int64_t column = 0; column < std::min(panel_columns, out.columns); column += block_of_tiles)
        for (int64_t row = 0; row < rows; row += block_of_tiles) {
            const TilesOnLeft block = left.from(row / tile_rows);
            const int64_t count = std::min(block_of_tiles, rows - row);
            if (count > tile_rows)
                tile_block<Tiles, true>(sums, block, panel + column, tile_steps);
            else
                tile_block<Tiles, false>(sums, block, panel + column, tile_steps);
            const ProductRows<T> to = out.from(row, column);
            for (int64_t r = 0; r < count; ++r)
                store_block_row(to.data + r * to.stride, sums + r * block_of_tiles, to.columns, accumulate);
        }
}

// The transpose: out (up to 64 columns of the panel, rows) (+)= (left panel)ᵀ. columns: of the panel.
template <typename Tiles>
inline void tile_product_transposed(const ProductRows<float>& out, const TilesOnLeft& left,
                                    const BFloat16Pair* panel, int64_t columns, int64_t tile_steps,
                                    bool accumulate) {
    alignas(64) float sums[block_of_tiles * block_of_tiles], turned[block_of_tiles * block_of_tiles];
    for (int64_t column = 0; column < std::min(panel_columns, columns); column += block_of_tiles)
        for (int64_t row = 0; row < out.columns; row += block_of_tiles) {
            tile_block<Tiles, true>(sums, left.from(row / tile_rows), panel + column, tile_steps);
            for (int64_t i = 0; i < block_of_tiles; i += tile_rows)
                for (int64_t j = 0; j < block_of_tiles; j += tile_columns)
                    transpose_square(turned + j * block_of_tiles + i, block_of_tiles,
                                     sums + i * block_of_tiles + j, block_of_tiles);
            const ProductRows<float> to = out.from(column, row);
            for (int64_t c = 0; c < std::min(block_of_tiles, columns - column); ++c)
                store_block_row(to.data + c * to.stride, turned + c * block_of_tiles, to.columns, accumulate);
        }
}

}  // namespace train_qat
