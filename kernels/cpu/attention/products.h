// The products of attention, c (+)= a b with a float32 result, on tiles that sit in a core's caches: in vector registers,
// or in matrix tiles. Both passes take one of them as a policy.
#pragma once

#include "kernels/cpu/products/units.h"

namespace train_qat {

// A block of c in registers: each step of the inner loop reads `vectors` vectors of b and broadcasts `rows` elements of a.
template <int rows, int vectors, typename Element>
inline void product_in_registers(float* c, int64_t c_stride, const Element* a, int64_t a_stride,
                                 const Element* b, int64_t b_stride, int64_t inner, bool accumulate) {
    FloatVector sums[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            sums[r][v] = accumulate ? load_vector(c + r * c_stride + v * vector_lanes) : FloatVector{};
    for (int64_t k = 0; k < inner; ++k)
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v)
                multiply_add(sums[r][v], a[r * a_stride + k], b[k * b_stride + v * vector_lanes]);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store_vector(c + r * c_stride + v * vector_lanes, sums[r][v]);
}

// Blocks of `most_rows` rows keep the multipliers busy: enough independent sums to hide their latency, in the registers
// that there are.
template <int vectors, int most_rows, typename Element>
inline void panel_in_registers(float* c, int64_t c_stride, const Element* a, int64_t a_stride,
                               const Element* b, int64_t b_stride, int64_t rows, int64_t inner,
                               bool accumulate) {
    int64_t r = 0;
    const auto blocks_of = [&]<int count>() {
        if constexpr (count <= most_rows)
            for (; r + count <= rows; r += count)
                product_in_registers<count, vectors>(c + r * c_stride, c_stride, a + r * a_stride, a_stride,
                                                     b, b_stride, inner, accumulate);
    };
    blocks_of.template operator()<most_rows>();
    blocks_of.template operator()<8>();
    blocks_of.template operator()<4>();
    blocks_of.template operator()<2>();
    blocks_of.template operator()<1>();
}

struct VectorProducts {
    // What a thread does around its products.
    struct Session {};

    // c (rows, columns) (+)= a b. inner: in elements; columns: a multiple of 16; strides in elements.
    template <typename Element>
    static void multiply(float* c, int64_t c_stride, const Element* a, int64_t a_stride, const Element* b,
                         int64_t b_stride, int64_t rows, int64_t inner, int64_t columns, bool accumulate) {
        const auto panel = [&]<int vectors, int most_rows>(int64_t j) {
            panel_in_registers<vectors, most_rows>(c + j, c_stride, a, a_stride, b + j, b_stride, rows, inner,
                                                   accumulate);
        };
        int64_t j = 0;
#if defined(__AVX512F__)
        for (; j + 64 <= columns; j += 64) panel.template operator()<4, 6>(j);
        if (columns - j == 48)
            panel.template operator()<3, 8>(j);
        else if (columns - j == 32)
            panel.template operator()<2, 8>(j);
        else if (columns - j == 16)
            panel.template operator()<1, 16>(j);
#else
        for (; j < columns; j += 2 * vector_lanes) panel.template operator()<2, 6>(j);
#endif
    }
};

// With matrix tiles. Reads and writes rows up to a multiple of 16, and sums up to a multiple of 16 pairs, where one
// operand or the other is zero.
template <typename Tiles>
struct TileProducts {
    struct Session {
        Session() { Tiles::configure(); }
        ~Session() { Tiles::release(); }
        Session(const Session&) = delete;
        Session& operator=(const Session&) = delete;
    };

    static void multiply(float* c, int64_t c_stride, const BFloat16Pair* a, int64_t a_stride,
                         const BFloat16Pair* b, int64_t b_stride, int64_t rows, int64_t inner,
                         int64_t columns, bool accumulate) {
        for (int64_t row = 0; row < rows; row += 2 * tile_rows)
            for (int64_t column = 0; column < columns; column += 2 * tile_columns) {
                const bool two_rows = rows - row > tile_rows, two_columns = columns - column > tile_columns;
                const auto block = [&]<int block_rows, int block_columns>() {
                    multiply_block<block_rows, block_columns>(c + row * c_stride + column, c_stride,
                                                              a + row * a_stride, a_stride, b + column,
                                                              b_stride, inner, accumulate);
                };
                if (two_rows && two_columns)
                    block.template operator()<2, 2>();
                else if (two_rows)
                    block.template operator()<2, 1>();
                else if (two_columns)
                    block.template operator()<1, 2>();
                else
                    block.template operator()<1, 1>();
            }
    }

  private:
    // Sums in tiles 0 to 3 (two rows of two), left operands in 4 and 5, right ones in 6 and 7.
    template <int block_rows, int block_columns>
    static void multiply_block(float* c, int64_t c_stride, const BFloat16Pair* a, int64_t a_stride,
                               const BFloat16Pair* b, int64_t b_stride, int64_t inner, bool accumulate) {
        constexpr int64_t word = sizeof(float);
        const auto for_sums = [&](auto&& function) {
            function.template operator()<0>(c);
            if constexpr (block_columns == 2) function.template operator()<1>(c + tile_columns);
            if constexpr (block_rows == 2) function.template operator()<2>(c + tile_rows * c_stride);
            if constexpr (block_rows == 2 && block_columns == 2)
                function.template operator()<3>(c + tile_rows * c_stride + tile_columns);
        };
        for_sums([&]<int tile>(const float* place) {
            if (accumulate)
                Tiles::template load<tile>(place, c_stride * word);
            else
                Tiles::template zero<tile>();
        });
        for (int64_t k = 0; k < inner; k += steps_of_tile) {
            Tiles::template load<4>(a + k, a_stride * word);
            Tiles::template load<6>(b + k * b_stride, b_stride * word);
            Tiles::template multiply_add<0, 4, 6>();
            if constexpr (block_columns == 2) {
                Tiles::template load<7>(b + k * b_stride + tile_columns, b_stride * word);
                Tiles::template multiply_add<1, 4, 7>();
            }
            if constexpr (block_rows == 2) {
                Tiles::template load<5>(a + tile_rows * a_stride + k, a_stride * word);
                Tiles::template multiply_add<2, 5, 6>();
                if constexpr (block_columns == 2) Tiles::template multiply_add<3, 5, 7>();
            }
        }
        for_sums([&]<int tile>(float* place) { Tiles::template store<tile>(place, c_stride * word); });
    }
};

// The products of a unit (CpuBackend::with_matmul_unit).
template <typename Unit>
struct ProductsOf {
    using type = VectorProducts;
};
template <typename Tiles>
struct ProductsOf<TileUnit<Tiles>> {
    using type = TileProducts<Tiles>;
};

}  // namespace train_qat
