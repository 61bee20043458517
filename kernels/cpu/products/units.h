// What can compute products with panels, under one interface for the drivers, matmul.cpp and
// weight_gradient.cpp: vector registers, and matrix tiles for bfloat16.
#pragma once

#include "kernels/cpu/products/tile_product.h"
#include "kernels/cpu/products/vector_product.h"

namespace train_qat {

template <typename T>
using ElementOf = typename TileElement<T>::type;

// A row-major matrix that is summed over its rows.
template <typename T>
struct SummedRows {
    const T* data;
    int64_t rows, columns;
    PanelLayout layout() const { return {dtype_of<T>, rows, columns}; }
    SummedRows part(int64_t row, int64_t count) const { return {data + row * columns, count, columns}; }
};

template <typename Element>
struct VectorUnit {
    // Rows and summed numbers that must exist, as zeros at least.
    static constexpr int64_t rows_at_a_time = 1, inner_at_a_time = element_width<Element>;

    // out (rows, up to 64 columns) (+)= left (rows of `stride` elements) panel.
    template <typename Out>
    static void multiply_rows(const ProductRows<Out>& out, const Element* left, int64_t stride,
                              const Element* panel, int64_t rows, int64_t steps, bool accumulate) {
        vector_product(out, RowsOnLeft<Element>{left, stride}, panel, rows, steps, accumulate);
    }

    // For products of two matrices over their rows, in which many tasks read one matrix, `shared`, and one task a panel of
    // the other, `own`. Rows [first, first + rows) of panel `index` of the shared one: a panel like any other.
    template <typename T>
    static void pack_shared(Element* panel, const SummedRows<T>& matrix, int64_t index, int64_t first,
                            int64_t rows) {
        pack_panel(panel, matrix.data, matrix.columns, first, rows, index * panel_columns, matrix.columns,
                   first + rows == matrix.rows ? matrix.layout().steps() : 0);
    }

    // out (+)= a product of 64 columns of both: ownᵀ shared, or where !own_is_rows sharedᵀ own; rows: of out. Steps
    // [first, first + count) of the shared panel, whose steps are all_steps, and the first `count` of own.
    static void multiply_columns(const ProductRows<float>& out, int64_t rows, const Element* shared, int64_t,
                                 int64_t first, const Element* own, int64_t count, bool own_is_rows,
                                 bool accumulate) {
        const Element* const part = shared + first * panel_columns;
        vector_product(out, PanelOnLeft<Element>{own_is_rows ? own : part}, own_is_rows ? part : own, rows,
                       count, accumulate);
    }
};

template <typename Tiles>
struct TileUnit {
    static constexpr int64_t rows_at_a_time = block_of_tiles, inner_at_a_time = tile_depth;

    template <typename Out>
    static void multiply_rows(const ProductRows<Out>& out, const BFloat16Pair* left, int64_t stride,
                              const BFloat16Pair* panel, int64_t rows, int64_t steps, bool accumulate) {
        Tiles::configure();
        tile_product<Tiles>(out, TilesOnLeft::of_rows(left, stride), panel, rows, steps / steps_of_tile,
                            accumulate);
        Tiles::release();
    }

    // The shared matrix is on the left, transposed: each of its panels is four rows of tiles. first: a multiple of 32.
    static void pack_shared(BFloat16Pair* panel, const SummedRows<bfloat16>& matrix, int64_t index,
                            int64_t first, int64_t rows) {
        const int64_t all_steps = matrix.layout().steps();
        for (int64_t row = first; row < first + rows; row += tile_depth)
            for (int64_t i = 0; i < panel_columns / tile_rows; ++i) {
                const int64_t column = index * panel_columns + i * tile_rows;
                const int64_t count = std::clamp(matrix.columns - column, int64_t{0}, tile_rows);
                alignas(64) BFloat16Pair square[tile_pairs] = {};
                if (count > 0)
                    pack_right(square, tile_rows, matrix.data + row * matrix.columns + column, matrix.columns,
                               std::min(tile_depth, matrix.rows - row), count);
                transpose_square(panel + (i * all_steps / steps_of_tile + row / tile_depth) * tile_pairs,
                                 steps_of_tile, square, tile_rows);
            }
    }

    static void multiply_columns(const ProductRows<float>& out, int64_t rows, const BFloat16Pair* shared,
                                 int64_t all_steps, int64_t first, const BFloat16Pair* own, int64_t count,
                                 bool own_is_rows, bool accumulate) {
        const TilesOnLeft left =
            TilesOnLeft::of_tiles(shared, all_steps / steps_of_tile).at_step(first / steps_of_tile);
        const int64_t tile_steps = (count + steps_of_tile - 1) / steps_of_tile;
        Tiles::configure();
        if (own_is_rows)
            tile_product_transposed<Tiles>(out, left, own, rows, tile_steps, accumulate);
        else
            tile_product<Tiles>(out, left, own, rows, tile_steps, accumulate);
        Tiles::release();
    }
};

}  // namespace train_qat
