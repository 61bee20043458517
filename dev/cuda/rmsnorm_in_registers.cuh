// The variants of rmsnorm.cu that keep a row in registers between its two passes, for rows of whole vectors.
#pragma once

#include <cstdint>

#include "kernels/cuda/rows/row_tile.cuh"

namespace train_qat::CU_BACKEND {

constexpr float epsilon = 1e-5f;

struct Forward {
    float* residual_out;        // (M, C)
    bfloat16* y;                // (M, C)
    float* rstd;                // (M)
    const float* residual_in;   // (M, C)
    const bfloat16* branch;     // (M, C)
    const float* column_scale;  // (C)
    const float* weight;        // (C)
    int rows, columns;
};

struct Backward {
    float* d_residual;          // (M, C), added to
    float* partial;             // (tiles, C), the tiles' parts of dweight
    bfloat16* dz;               // (M, C)
    const bfloat16* dy;         // (M, C)
    const float* residual;      // (M, C)
    const float* rstd;          // (M)
    const float* weight;        // (C)
    const float* column_scale;  // (C)
    int rows, columns, tile_rows;
};

CU_DEVICE float rstd_of(float squares, int columns) {
    return 1.0f / sqrtf(squares / static_cast<float>(columns) + epsilon);
}

using Floats = Vector<float, 4>;
using Narrow = Vector<bfloat16, 4>;

CU_DEVICE Narrow normalized(const Floats& r, float rstd, const Floats& weight) {
    Narrow y;
    CU_UNROLL
    for (int j = 0; j < 4; ++j) y[j] = static_cast<bfloat16>(r[j] * rstd * weight[j]);
    return y;
}

// r += scale ∘ branch; returns the sum of r².
CU_DEVICE float add_branch(Floats& r, const Narrow& branch, const Floats& scale) {
    float squares = 0;
    CU_UNROLL
    for (int j = 0; j < 4; ++j) {
        r[j] += scale[j] * static_cast<float>(branch[j]);
        squares += r[j] * r[j];
    }
    return squares;
}

// ---- a warp for a row, `vectors` of 4 numbers in each lane, at least C / 128

constexpr int row_warps = 4;  // of a block

template <int vectors>
__global__ void __launch_bounds__(row_warps * 32) warp_in_registers(Forward p) {
    const int64_t row = int64_t{blockIdx.x} * row_warps + warp_index();
    if (row >= p.rows) return;
    const int64_t offset = row * p.columns;
    const int first = lane_index() * 4;
    Floats r[vectors];
    Narrow branch[vectors];
    CU_UNROLL
    for (int i = 0; i < vectors; ++i) {
        if (first + i * 128 >= p.columns) continue;
        r[i] = load_vector<4>(p.residual_in + offset + first + i * 128);
        branch[i] = load_vector<4>(p.branch + offset + first + i * 128);
    }
    float squares = 0;
    CU_UNROLL
    for (int i = 0; i < vectors; ++i) {
        const int c = first + i * 128;
        if (c >= p.columns) continue;
        squares += add_branch(r[i], branch[i], load_vector<4>(p.column_scale + c));
        store_vector<4>(p.residual_out + offset + c, r[i]);
    }
    const float rstd = rstd_of(warp_sum(squares), p.columns);
    if (lane_index() == 0) store(p.rstd + row, rstd);
    CU_UNROLL
    for (int i = 0; i < vectors; ++i) {
        const int c = first + i * 128;
        if (c >= p.columns) continue;
        store_vector<4>(p.y + offset + c, normalized(r[i], rstd, load_vector<4>(p.weight + c)));
    }
}

// ---- a thread for a vector of a tile of rows: its columns' numbers and the next row's loads are in registers

constexpr int most_row_threads = 512;

// Of rows in turn, with one meeting each: scratch has a row of numbers for even rows and one for odd ones, and who is
// at the next meeting has read the last one's numbers.
CU_DEVICE float sum_of_row(float value, float (&scratch)[2][most_row_threads / 32], int64_t row) {
    float* sums = scratch[row & 1];
    value = warp_sum(value);
    if (lane_index() == 0) store_shared(sums + warp_index(), value);
    block_sync();
    float total = load_shared(sums);
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / 32; ++warp) total += load_shared(sums + warp);
    return total;
}

constexpr int forward_tile = 16;  // rows of a block

__global__ void __launch_bounds__(most_row_threads) thread_per_vector(Forward p) {
    CU_SHARED(scratch, float[2][most_row_threads / 32]);
    const int c = static_cast<int>(threadIdx.x) * 4;
    const bool mine = c < p.columns;
    Floats scale = {}, weight = {}, next_r = {};
    Narrow next_branch = {};
    const auto load_row = [&](int64_t row) {
        next_r = load_vector<4>(p.residual_in + row * p.columns + c);
        next_branch = load_vector<4>(p.branch + row * p.columns + c);
    };
    const int64_t first = int64_t{blockIdx.x} * forward_tile;
    const int64_t last = first + forward_tile < p.rows ? first + forward_tile : p.rows;
    if (mine) {
        scale = load_vector<4>(p.column_scale + c);
        weight = load_vector<4>(p.weight + c);
        load_row(first);
    }
    for (int64_t row = first; row < last; ++row) {
        Floats r = next_r;
        const Narrow branch = next_branch;
        if (mine && row + 1 < last) load_row(row + 1);
        const float part = add_branch(r, branch, scale);
        if (mine) store_vector<4>(p.residual_out + row * p.columns + c, r);
        const float rstd = rstd_of(sum_of_row(part, scratch, row), p.columns);
        if (threadIdx.x == 0) store(p.rstd + row, rstd);
        if (mine) store_vector<4>(p.y + row * p.columns + c, normalized(r, rstd, weight));
    }
}

__global__ void __launch_bounds__(most_row_threads) gradient_per_vector(Backward p) {
    CU_SHARED(scratch, float[2][most_row_threads / 32]);
    const int c = static_cast<int>(threadIdx.x) * 4;
    const bool mine = c < p.columns;
    Floats scale = {}, weight = {}, partial = {}, next_r = {}, next_d = {};
    Narrow next_dy = {};
    float next_rstd = 0;
    const auto load_row = [&](int64_t row) {
        next_rstd = load(p.rstd + row);
        next_dy = load_vector<4>(p.dy + row * p.columns + c);
        next_r = load_vector<4>(p.residual + row * p.columns + c);
        next_d = load_vector<4>(p.d_residual + row * p.columns + c);
    };
    const int64_t first = int64_t{blockIdx.x} * p.tile_rows;
    const int64_t last = first + p.tile_rows < p.rows ? first + p.tile_rows : p.rows;
    if (mine) {
        scale = load_vector<4>(p.column_scale + c);
        weight = load_vector<4>(p.weight + c);
        load_row(first);
    }
    for (int64_t row = first; row < last; ++row) {
        const Floats r = next_r;
        const Narrow dy = next_dy;
        const float rstd = next_rstd;
        Floats d = next_d;
        if (mine && row + 1 < last) load_row(row + 1);
        float dot = 0;
        CU_UNROLL
        for (int j = 0; j < 4; ++j) {
            const float product = static_cast<float>(dy[j]) * (r[j] * rstd);
            partial[j] += product;
            dot += product * weight[j];
        }
        const float mean = sum_of_row(dot, scratch, row) / static_cast<float>(p.columns);
        if (!mine) continue;
        const float shrink = rstd * rstd * mean;
        Narrow dz;
        CU_UNROLL
        for (int j = 0; j < 4; ++j) {
            d[j] += rstd * (static_cast<float>(dy[j]) * weight[j]) - shrink * r[j];
            dz[j] = static_cast<bfloat16>(d[j] * scale[j]);
        }
        store_vector<4>(p.d_residual + row * p.columns + c, d);
        store_vector<4>(p.dz + row * p.columns + c, dz);
    }
    if (mine) store_vector<4>(p.partial + int64_t{blockIdx.x} * p.columns + c, partial);
}

// dweight = the sum of the partials (tiles, C), in double and in fixed order. A block has 8 columns, a sector of each
// tile: four times the blocks, and four tiles side by side in a warp, of rmsnorm.cu's sum_partials, whose C / 32 blocks
// leave most of a card idle.
constexpr int summing_warps = 16, summed_columns = 8, tiles_of_warp = 32 / summed_columns;

__global__ void __launch_bounds__(summing_warps * 32)
    sum_few_columns(float* dweight, const float* partials, int tiles, int columns) {
    CU_SHARED(sums, double[summing_warps][summed_columns]);
    const int column = static_cast<int>(blockIdx.x) * summed_columns + lane_index() % summed_columns;
    constexpr int in_flight = 4, step = summing_warps * tiles_of_warp;
    double sum = 0;
    for (int first = warp_index() * tiles_of_warp + lane_index() / summed_columns; first < tiles;
         first += in_flight * step) {
        float part[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int64_t tile = first + i * step;
            part[i] = tile < tiles && column < columns ? load(partials + tile * columns + column) : 0.0f;
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) sum += part[i];
    }
    CU_UNROLL
    for (int lanes = summed_columns; lanes < 32; lanes *= 2) sum += shuffle_xor(sum, lanes);
    if (lane_index() < summed_columns) store_shared(&sums[warp_index()][lane_index()], sum);
    block_sync();
    if (threadIdx.x >= summed_columns || column >= columns) return;
    double total = 0;
    for (int warp = 0; warp < summing_warps; ++warp) total += load_shared(&sums[warp][threadIdx.x]);
    store(dweight + column, static_cast<float>(total));
}

}  // namespace train_qat::CU_BACKEND
