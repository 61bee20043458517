// How tiles of operands come from global into shared memory, step by step of the main loop.
//
// A source says what the eight elements of a matrix from some place on are. Two ways:
//   * AlignedBfloat16: cp.async copies them straight into a ring of `copy_stages` tiles. While one of them
//     is multiplied, the others are on their way.
//   * Any other source - bfloat16 at odd addresses (below), packed codes (packed_codes.cuh): a thread
//     fetches its part of a tile into registers, as it is in memory, one step before it turns it into
//     bfloat16 and puts it into one of two tiles. The block does this once for each element of the tile, not
//     once per warp that multiplies with it, and a step is long enough for what was fetched to arrive.
//
// Outside of the matrix bfloat16 sources are zero. Weights may be any number there that their nearest
// neighbour inside is, too: it meets zeros of the other operand, or belongs to sums that are not stored, or
// is a NaN that these sums already have.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/matmul/matmul_tiles.cuh"
#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

constexpr int copy_stages = 4;

// A row-major matrix whose rows begin at multiples of 16 bytes.
struct AlignedBfloat16 {
    const bfloat16* data;
    int rows, columns;
    explicit AlignedBfloat16(const Tensor& matrix)
        : data(matrix.as<bfloat16>()),
          rows(static_cast<int>(matrix.shape[0])),
          columns(static_cast<int>(matrix.shape[1])) {}
};

// The same at any address.
struct UnalignedBfloat16 {
    const bfloat16* data;
    int rows, columns;
    explicit UnalignedBfloat16(const Tensor& matrix)
        : data(matrix.as<bfloat16>()),
          rows(static_cast<int>(matrix.shape[0])),
          columns(static_cast<int>(matrix.shape[1])) {}

    using Raw = Vector<uint32_t, 4>;
    CU_DEVICE Raw fetch(int row, int column) const {
        const bfloat16* from = data + int64_t{std::min(row, rows - 1)} * columns;
        Raw raw = {};
        CU_UNROLL
        for (int e = 0; e < 8; ++e) {
            const uint32_t bits = load(from + std::min(column + e, columns - 1)).bits;
            raw[e / 2] |= (row < rows && column + e < columns ? bits : 0u) << e % 2 * 16;
        }
        return raw;
    }
    CU_DEVICE static Vector<uint32_t, 4> convert(const Raw& raw) { return raw; }
};

// An operand of a block's product: `extent` of its outer dimension from `first` on.
template <typename Source, Order order, int extent, int threads>
class Operand {
  public:
    using Tile = OperandTile<order, extent>;
    static constexpr int shared_elements = 2 * Tile::elements;

    CU_DEVICE Operand(const Source& source, bfloat16* shared, int first)
        : source_(source), shared_(shared), first_(first) {}

    CU_DEVICE void copy(int) {}
    CU_DEVICE void fetch(int step) {
        CU_UNROLL
        for (int i = 0; i < passes; ++i)
            raw_[i] = order == Order::inner_along_rows
                          ? source_.fetch(first_ + row(i), step * tile_depth + 8 * vector())
                          : source_.fetch(step * tile_depth + row(i), first_ + 8 * vector());
    }
    // What was fetched last.
    CU_DEVICE void put(int step) {
        bfloat16* tile = shared_ + step % 2 * Tile::elements;
        CU_UNROLL
        for (int i = 0; i < passes; ++i)
            store_shared(reinterpret_cast<Vector<uint32_t, 4>*>(tile + Tile::offset(row(i), vector())),
                         source_.convert(raw_[i]));
    }
    CU_DEVICE const bfloat16* tile(int step) const { return shared_ + step % 2 * Tile::elements; }

  private:
    static constexpr int passes = Tile::elements / 8 / threads;
    static_assert(Tile::elements / 8 % threads == 0 && threads % Tile::row_vectors == 0);
    CU_DEVICE static int row(int pass) {
        return static_cast<int>(threadIdx.x) / Tile::row_vectors + pass * (threads / Tile::row_vectors);
    }
    CU_DEVICE static int vector() { return static_cast<int>(threadIdx.x) % Tile::row_vectors; }

    const Source& source_;
    bfloat16* shared_;
    int first_;
    typename Source::Raw raw_[passes];
};

template <Order order, int extent, int threads>
class Operand<AlignedBfloat16, order, extent, threads> {
  public:
    using Tile = OperandTile<order, extent>;
    static constexpr int shared_elements = copy_stages * Tile::elements;

    CU_DEVICE Operand(const AlignedBfloat16& source, bfloat16* shared, int first)
        : pitch_(source.columns), shared_(shared), row_(static_cast<int>(threadIdx.x) / Tile::row_vectors) {
        const int column = static_cast<int>(threadIdx.x) % Tile::row_vectors * 8;
        place_ = Tile::offset(row_, column / 8);
        if constexpr (order == Order::inner_along_rows) {
            rest_ = source.columns - column;
            outer_rest_ = source.rows - first - row_;
            next_ = source.data + int64_t{first + row_} * pitch_ + column;
        } else {
            rest_ = source.rows - row_;
            outer_rest_ = source.columns - first - column;
            next_ = source.data + int64_t{row_} * pitch_ + first + column;
        }
    }

    // Called for one step after the other.
    CU_DEVICE void copy(int step) {
        bfloat16* tile = shared_ + step % copy_stages * Tile::elements + place_;
        CU_UNROLL
        for (int i = 0; i < passes; ++i) {
            constexpr bool inner = order == Order::inner_along_rows;
            const bool inside =
                inner ? rest_ > 0 && outer_rest_ > i * pass_rows : outer_rest_ > 0 && rest_ > i * pass_rows;
            cp_async_16(tile + i * pass_rows * Tile::row_vectors * 8, next_ + int64_t{i * pass_rows} * pitch_,
                        inside ? 16 : 0);
        }
        rest_ -= tile_depth;
        next_ += order == Order::inner_along_rows ? tile_depth : int64_t{tile_depth} * pitch_;
    }
    CU_DEVICE void fetch(int) {}
    CU_DEVICE void put(int) {}
    CU_DEVICE const bfloat16* tile(int step) const { return shared_ + step % copy_stages * Tile::elements; }

  private:
    static constexpr int pass_rows = threads / Tile::row_vectors, passes = Tile::rows / pass_rows;
    static_assert(threads % Tile::row_vectors == 0 && Tile::rows % pass_rows == 0 && pass_rows % 8 == 0);
    const bfloat16* next_;
    int64_t pitch_;
    bfloat16* shared_;
    int row_, place_, rest_, outer_rest_;
};

}  // namespace train_qat::CU_BACKEND
