// Matmuls on tensor cores: out (rows, columns) = left right, with bfloat16 operands and float32 sums, in the three forms
// of a linear layer (dense_matmul.h), for operands from any source (matmul_operands.cuh): bfloat16 as it is, packed
// codes.
//
// A block computes a tile of the product, and each of its warps a part of that in registers, over steps of 32
// of the inner dimension. In a step, between two barriers,
//   1 copies of a later step's tiles start (cp.async);
//   2 this step's tiles are multiplied (ldmatrix, mma);
//   3 the next step's weights become bfloat16 in shared memory: arithmetic that the compiler spreads between the mma,
//     which take 8 cycles each and leave room for it;
//   4 the weights of the step behind that are fetched into registers.
// A sum belongs to one block and is in the order of the inner dimension: results depend on nothing else.
//
//               tile        warps        registers   KiB of shared memory: dense, fused
//   large       256 x 128   8 of 64x64   up to 255                           96     80
//   small       128 x 64    4 of 64x32   up to 168                           48     40
//   unaligned   128 x 64    4 of 64x32   up to 255                           24     24
//
// Floors: 2 rows columns inner FLOP over the card's peak; and each block's operands, (tile rows + tile
// columns) * inner * 2 bytes, less for packed codes, over the bandwidth of the L2 cache, most of which the
// bands of blocks below turn into hits there. Between them stands shared memory: per step a large tile costs
// an A100, at 1024 multiply-adds and 128 bytes a cycle, 1024 cycles of tensor cores and 704 of ldmatrix,
// cp.async and stores; a small one 256 and 288. Registers have to hold the sums, 128 of a thread in large
// tiles, and the operands of two mma steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/matmul_operands.cuh"
#include "kernels/cuda/matmul/matmul_tiles.cuh"
#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

// A block computes a tile of the product, each of its warps warp_rows x warp_columns of it. resident: blocks
// that a multiprocessor should be able to hold, which limits registers.
template <int warp_rows_, int warp_columns_, int warps_down, int warps_across_, int resident_>
struct BlockTile {
    static constexpr int warp_rows = warp_rows_, warp_columns = warp_columns_, warps_across = warps_across_;
    static constexpr int rows = warp_rows * warps_down, columns = warp_columns * warps_across;
    static constexpr int warps = warps_down * warps_across, threads = 32 * warps, resident = resident_;
};
using LargeTile = BlockTile<64, 64, 4, 2, 1>;
using SmallTile = BlockTile<64, 32, 2, 2, 3>;
using UnalignedTile = BlockTile<64, 32, 2, 2, 2>;  // both operands on their way through registers

constexpr Order left_order(MatmulForm form) {
    return form == MatmulForm::tn ? Order::outer_along_rows : Order::inner_along_rows;
}
constexpr Order right_order(MatmulForm form) {
    return form == MatmulForm::nt ? Order::inner_along_rows : Order::outer_along_rows;
}

template <typename Block, MatmulForm form, typename LeftSource, typename RightSource>
struct TileMatmul {
    using Left = Operand<LeftSource, left_order(form), Block::rows, Block::threads>;
    using Right = Operand<RightSource, right_order(form), Block::columns, Block::threads>;
    static constexpr int operand_bytes = (Left::shared_elements + Right::shared_elements) * 2;
    static constexpr int staging_floats = 16 * Block::warp_columns;  // of a warp
    static constexpr int shared_bytes = std::max(operand_bytes, Block::warps* staging_floats * 4);
};

template <typename Block, MatmulForm form, typename LeftSource, typename RightSource>
__global__ void __launch_bounds__(Block::threads, Block::resident)
    tile_matmul(Product out, LeftSource left_source, RightSource right_source, int inner) {
    using Operands = TileMatmul<Block, form, LeftSource, RightSource>;
    using Left = typename Operands::Left;
    using Right = typename Operands::Right;
    constexpr int M = Block::warp_rows, N = Block::warp_columns;
    CU_DYN_SHARED(unsigned char, shared);

    const TilePlace place =
        place_in_band(static_cast<int>(blockIdx.x), (out.rows + Block::rows - 1) / Block::rows,
                      (out.columns + Block::columns - 1) / Block::columns);
    const int first_row = place.row * Block::rows, first_column = place.column * Block::columns;
    const int warp_row = warp_index() / Block::warps_across * M,
              warp_column = warp_index() % Block::warps_across * N;

    bfloat16* operands = reinterpret_cast<bfloat16*>(shared);
    Left left(left_source, operands, first_row);
    Right right(right_source, operands + Left::shared_elements, first_column);
    CU_UNROLL
    for (int step = 0; step < copy_stages - 1; ++step) {
        left.copy(step);
        right.copy(step);
        cp_async_commit();
    }
    left.fetch(0);
    right.fetch(0);
    left.put(0);
    right.put(0);
    const int steps = (inner + tile_depth - 1) / tile_depth;
    if (steps > 1) {
        left.fetch(1);
        right.fetch(1);
    }

    float sum[M / 16][N / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        // This step's tiles have arrived, and the tiles of the step before are free.
        cp_async_wait<copy_stages - 2>();
        block_sync();
        left.copy(step + copy_stages - 1);
        right.copy(step + copy_stages - 1);
        cp_async_commit();
        multiply_tiles<typename Left::Tile, typename Right::Tile, M, N>(
            sum, left.tile(step), right.tile(step), warp_row, warp_column);
        left.put(step + 1);
        right.put(step + 1);
        if (step + 2 < steps) {
            left.fetch(step + 2);
            right.fetch(step + 2);
        }
    }
    cp_async_wait<0>();
    block_sync();
    store_product<M, N>(out, reinterpret_cast<float*>(shared) + warp_index() * Operands::staging_floats, sum,
                        first_row + warp_row, first_column + warp_column);
}

// ---- launchers

inline Product product_of(const Tensor& out, bool accumulate) {
    constexpr int64_t most = 1 << 30;  // positions are int
    if (out.shape[0] > most || out.shape[1] > most)
        throw std::logic_error("matmul: more than 2^30 rows or columns");
    const bool is_float32 = out.dtype == DType::float32;
    return {out.data,
            static_cast<int>(out.shape[0]),
            static_cast<int>(out.shape[1]),
            is_float32,
            accumulate,
            is_float32 ? vector_aligned<4>(static_cast<const float*>(out.data), out.shape[1])
                       : vector_aligned<4>(static_cast<const bfloat16*>(out.data), out.shape[1])};
}

inline int inner_extent(MatmulForm form, const Tensor& left) {
    const int64_t inner = left.shape[form == MatmulForm::tn ? 0 : 1];
    constexpr int64_t most = 1 << 30;
    if (inner > most) throw std::logic_error("matmul: sums of more than 2^30 terms");
    return static_cast<int>(inner);
}

inline bool rows_are_aligned(const Tensor& matrix) {
    return vector_aligned<8>(static_cast<const bfloat16*>(matrix.data), matrix.shape[1]);
}

template <typename Block>
int64_t tiles_of(const Product& out) {
    const auto count = [](int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; };
    return count(out.rows, Block::rows) * count(out.columns, Block::columns);
}

// A launch has one block per tile.
template <typename Block>
unsigned checked_tiles(const Product& out) {
    const int64_t tiles = tiles_of<Block>(out);
    if (tiles > std::numeric_limits<int>::max()) throw std::logic_error("matmul: the product is too large");
    return static_cast<unsigned>(tiles);
}

// Calls function.template operator()<Block>() with the tile for this product: the large one, unless it has
// too few for the multiprocessors of today's cards, or the small one, an eighth slower, saves more than that
// at the edges.
template <typename Function>
void with_block_tile(const Product& out, TileSize size, Function&& function) {
    constexpr int64_t enough = 96, large_area = LargeTile::rows * LargeTile::columns,
                      small_area = SmallTile::rows * SmallTile::columns;
    const int64_t large_tiles = tiles_of<LargeTile>(out);
    const bool better =
        large_tiles >= enough && large_tiles * large_area * 8 <= tiles_of<SmallTile>(out) * small_area * 9;
    if (size == TileSize::large || (size == TileSize::automatic && better))
        function.template operator()<LargeTile>();
    else
        function.template operator()<SmallTile>();
}

template <typename Block, MatmulForm form, typename LeftSource, typename RightSource>
void launch_tile_matmul(CuStream stream, const Product& out, const LeftSource& left, const RightSource& right,
                        int inner) {
    constexpr int bytes = TileMatmul<Block, form, LeftSource, RightSource>::shared_bytes;
    CU_LAUNCH((tile_matmul<Block, form, LeftSource, RightSource>), dim3(checked_tiles<Block>(out)),
              dim3(Block::threads), bytes, stream, out, left, right, inner);
}

// The kernel for a bfloat16 left operand and a right one that `aligned` reads where `right_is_aligned`, and `any`
// everywhere.
template <MatmulForm form, typename AlignedSource, typename AnySource>
void launch_product(CuStream stream, const Product& out, const Tensor& left, bool right_is_aligned,
                    const AlignedSource& aligned, const AnySource& any, TileSize size) {
    const int inner = inner_extent(form, left);
    if (!right_is_aligned || !rows_are_aligned(left)) {
        launch_tile_matmul<UnalignedTile, form>(stream, out, UnalignedBfloat16(left), any, inner);
        return;
    }
    with_block_tile(out, size, [&]<typename Block>() {
        launch_tile_matmul<Block, form>(stream, out, AlignedBfloat16(left), aligned, inner);
    });
}

}  // namespace train_qat::CU_BACKEND
