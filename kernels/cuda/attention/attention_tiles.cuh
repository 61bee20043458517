// The parts that the tensor-core kernels of attention are made of: tiles of a head's rows in shared memory,
// and products of a warp's rows with such tiles.
//
// A tile (rows, D) lies in shared memory row by row, D a multiple of 16. Vectors of 8 elements, 16 bytes, lie
// in 8 groups of four banks. Let g be the largest power of two, at most 8, that divides the D / 8 vectors of a
// row: the starts of 8 / g neighbouring rows lie in different multiples of g groups, and the next 8 / g rows
// start in the same ones. So rows r take turns within each g vectors: vector v has place v ^ (r / (8 / g) % g).
// The same vector of 8 neighbouring rows - what ldmatrix reads for one 8x8 matrix - then lies in 8 different
// groups, and so do 8 neighbouring vectors of a row, or of its end and the next one's start - what copies and
// stores move: there are no bank conflicts.
//
// A warp owns M = 16 or 32 rows of a product and all its columns. Lane 4g + t holds, in sum[i][j], rows 16i +
// g and 16i + g + 8 and columns 8j + 2t and 8j + 2t + 1 - the layout of mma.m16n8k16, which wants its left
// operand spread over the lanes in the same way. So softmax weights stay in their registers between the
// product that makes them and the product that uses them.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>

#include "kernels/cuda/attention/attention_heads.cuh"
#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND::attention {

// ---- tiles in shared memory

template <int D>
CU_DEVICE int tile_offset(int row, int vector) {
    static_assert(D % 16 == 0);
    constexpr int g = std::gcd(D / 8, 8);
    return row * D + (vector & ~(g - 1)) * 8 +
           ((vector ^ static_cast<int>(static_cast<unsigned>(row) / (8 / g))) & (g - 1)) * 8;
}

// Starts copying `rows` rows from `first` on; rows behind the last one become zero.
template <int D, int rows, int threads>
CU_DEVICE void copy_tile(bfloat16* tile, const HeadRows<const bfloat16>& source, int first) {
    constexpr int vectors = D / 8;
    // After that many copies a thread is back at its first column, `step` rows further down.
    constexpr int round = vectors / std::gcd(threads, vectors), step = round * threads / vectors;
    CU_UNROLL
    for (int i = 0; i * threads < rows * vectors; ++i) {
        const int place = static_cast<int>(threadIdx.x) + i % round * threads;
        const int row = place / vectors + i / round * step, vector = place % vectors;
        if ((i + 1) * threads > rows * vectors && row >= rows) break;
        const bool exists = first + row < source.count;
        const bfloat16* from = source.row(exists ? first + row : 0) + 8 * vector;
        cp_async_16(tile + tile_offset<D>(row, vector), from, exists ? 16 : 0);
    }
}

// ---- operands of mma_tile

// Left operand: M rows and 16 columns.
template <int D, int M>
CU_DEVICE void load_left(uint32_t (&a)[M / 16][4], const bfloat16* tile, int row, int column) {
    const int lane = lane_index();
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i)
        ldmatrix_x4(a[i], tile + tile_offset<D>(row + 16 * i + lane % 16, column / 8 + lane / 16));
}
// The whole left operand.
template <int D, int M>
CU_DEVICE void load_left_rows(uint32_t (&a)[D / 16][M / 16][4], const bfloat16* tile, int row) {
    CU_UNROLL
    for (int k = 0; k < D / 16; ++k) load_left<D, M>(a[k], tile, row, 16 * k);
}
// Left operand: the 16 columns 16k ... of a product that this warp has made, rounded to bfloat16.
template <int M, int N>
CU_DEVICE void pack_left(uint32_t (&a)[M / 16][4], const float (&p)[M / 16][N / 8][4], int k) {
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i) {
        const auto& low = p[i][2 * k];
        const auto& high = p[i][2 * k + 1];
        a[i][0] = pack_bfloat16(low[0], low[1]);
        a[i][1] = pack_bfloat16(low[2], low[3]);
        a[i][2] = pack_bfloat16(high[0], high[1]);
        a[i][3] = pack_bfloat16(high[2], high[3]);
    }
}
// Right operand: 16 rows and N columns of the tile's transpose, from its N rows on.
template <int D, int N>
CU_DEVICE void load_right_transposed(uint32_t (&b)[N / 8][2], const bfloat16* tile, int row, int column) {
    const int lane = lane_index();
    CU_UNROLL
    for (int j = 0; j < N / 8; j += 2) {
        uint32_t four[4];
        ldmatrix_x4(four,
                    tile + tile_offset<D>(row + 8 * j + lane / 16 * 8 + lane % 8, column / 8 + lane / 8 % 2));
        b[j][0] = four[0];
        b[j][1] = four[1];
        b[j + 1][0] = four[2];
        b[j + 1][1] = four[3];
    }
}
// Right operand: 16 rows and N columns of the tile.
template <int D, int N>
CU_DEVICE void load_right(uint32_t (&b)[N / 8][2], const bfloat16* tile, int row, int column) {
    const int lane = lane_index();
    CU_UNROLL
    for (int j = 0; j < N / 8; j += 2) {
        uint32_t four[4];
        ldmatrix_x4_trans(four, tile + tile_offset<D>(row + lane % 16, column / 8 + j + lane / 16));
        b[j][0] = four[0];
        b[j][1] = four[1];
        b[j + 1][0] = four[2];
        b[j + 1][1] = four[3];
    }
}

// ---- elements of a product

// Calls function(i, half) for the lane's rows, function(i, j, e) for its elements sum[i][j][e].
template <int M, typename Function>
CU_DEVICE void for_rows(Function&& function) {
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i) {
        CU_UNROLL
        for (int half = 0; half < 2; ++half) function(i, half);
    }
}
template <int M, int N, typename Function>
CU_DEVICE void for_elements(Function&& function) {
    CU_UNROLL
    for (int i = 0; i < M / 16; ++i) {
        CU_UNROLL
        for (int j = 0; j < N / 8; ++j) {
            CU_UNROLL
            for (int e = 0; e < 4; ++e) function(i, j, e);
        }
    }
}

// The row, of the warp's M, that holds elements 2 * half and 2 * half + 1 of sum[i][...].
CU_DEVICE int row_of(int i, int half) {
    return 16 * i + 8 * half + lane_index() / 4;
}
// The column of element e of sum[...][j].
CU_DEVICE int column_of(int j, int e) {
    return 8 * j + lane_index() % 4 * 2 + e % 2;
}

template <int M, int N>
CU_DEVICE void clear(float (&sum)[M / 16][N / 8][4]) {
    for_elements<M, N>([&](int i, int j, int e) { sum[i][j][e] = 0.0f; });
}

// Sum and maximum over the four lanes that hold a row.
CU_DEVICE float row_sum(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}
CU_DEVICE float row_max(float value) {
    value = fmaxf(value, shuffle_xor(value, 1));
    return fmaxf(value, shuffle_xor(value, 2));
}

// Puts -infinity where the key is later than the query. rows_are_keys: the product's rows are keys and its
// columns queries, else the other way round. columns_ahead: position of its first column minus that of its
// first row.
template <bool rows_are_keys, int M, int N>
CU_DEVICE void hide_later_keys(float (&scores)[M / 16][N / 8][4], int columns_ahead) {
    for_elements<M, N>([&](int i, int j, int e) {
        const int ahead = columns_ahead + column_of(j, e) - row_of(i, e / 2);
        if (rows_are_keys ? ahead < 0 : ahead > 0) scores[i][j][e] = -INFINITY;
    });
}

// ---- products

// sum (M, N) = x yᵀ, with x (M, D) in registers and y (N, D) the tile's rows from `row` on.
template <int D, int M, int N>
CU_DEVICE void multiply_transposed(float (&sum)[M / 16][N / 8][4], const uint32_t (&x)[D / 16][M / 16][4],
                                   const bfloat16* y, int row) {
    clear<M, N>(sum);
    CU_UNROLL
    for (int k = 0; k < D / 16; ++k) {
        uint32_t right[N / 8][2];
        load_right_transposed<D, N>(right, y, row, 16 * k);
        mma_tile<M, N>(sum, x[k], right);
    }
}
// The same with x the rows of a tile from x_row on.
template <int D, int M, int N>
CU_DEVICE void multiply_transposed(float (&sum)[M / 16][N / 8][4], const bfloat16* x, int x_row,
                                   const bfloat16* y, int row) {
    clear<M, N>(sum);
    CU_UNROLL
    for (int k = 0; k < D / 16; ++k) {
        uint32_t left[M / 16][4], right[N / 8][2];
        load_left<D, M>(left, x, x_row, 16 * k);
        load_right_transposed<D, N>(right, y, row, 16 * k);
        mma_tile<M, N>(sum, left, right);
    }
}

// sum (M, D) += p y, with p (M, N) rounded to bfloat16 and y (N, D) the tile's rows from `row` on.
template <int D, int M, int N>
CU_DEVICE void add_product(float (&sum)[M / 16][D / 8][4], const float (&p)[M / 16][N / 8][4],
                           const bfloat16* y, int row) {
    CU_UNROLL
    for (int k = 0; k < N / 16; ++k) {
        uint32_t left[M / 16][4], right[D / 8][2];
        pack_left<M, N>(left, p, k);
        load_right<D, D>(right, y, row + 16 * k, 0);
        mma_tile<M, D>(sum, left, right);
    }
}

// ---- results

// Writes the warp's rows, each times factor(i, half), as rows `first` ... of the head, through rows tile_row
// ... of a tile, which no other warp may need: neighbouring lanes then write neighbouring vectors.
template <int D, int M, typename Factor>
CU_DEVICE void store_rows(const HeadRows<bfloat16>& target, int first, bfloat16* tile, int tile_row,
                          const float (&sum)[M / 16][D / 8][4], Factor&& factor) {
    warp_sync();
    for_rows<M>([&](int i, int half) {
        CU_UNROLL
        for (int j = 0; j < D / 8; ++j) {
            bfloat16* place = tile + tile_offset<D>(tile_row + row_of(i, half), j) + lane_index() % 4 * 2;
            store_shared(reinterpret_cast<uint32_t*>(place),
                         pack_bfloat16(sum[i][j][2 * half] * factor(i, half),
                                       sum[i][j][2 * half + 1] * factor(i, half)));
        }
    });
    warp_sync();
    constexpr int vectors = D / 8;
    CU_UNROLL
    for (int v = lane_index(); v < M * vectors; v += 32) {
        const int row = v / vectors, vector = v % vectors;
        if (first + row < target.count)
            store_vector<8>(target.row(first + row) + 8 * vector,
                            load_shared_vector<8>(tile + tile_offset<D>(tile_row + row, vector)));
    }
}

// ---- choice

// The head dimensions that the tensor-core kernels are compiled for. The templates take every multiple of 16
// up to 128.
using TensorCoreHeadDims = std::integer_sequence<int, 16, 32, 64, 96, 128>;

// Calls function.operator()<D>() with D = head_dim where that is one of the list; returns whether it is.
template <int... D, typename Function>
bool with_head_dim(std::integer_sequence<int, D...>, int64_t head_dim, Function&& function) {
    return ((head_dim == D && (function.template operator()<D>(), true)) || ...);
}

template <int... D>
bool contains(std::integer_sequence<int, D...>, int64_t head_dim) {
    return ((head_dim == D) || ...);
}

// Whether the tensor-core kernels take this shape and matrices at these addresses. Rows have multiples of D
// elements, so that all of them, and all heads in them, are aligned when the first is.
template <typename... Address>
bool tensor_cores_apply(DType dtype, const AttentionShape& shape, const Address*... addresses) {
    return dtype == DType::bfloat16 && contains(TensorCoreHeadDims(), shape.head_dim) &&
           ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}

}  // namespace train_qat::CU_BACKEND::attention
