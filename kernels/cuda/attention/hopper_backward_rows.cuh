// What hopper_backward.cuh needs of the queries, and what becomes of their gradients: two kernels before and behind it, both
// bound by memory.
//
//   query_statistics    delta = rowsum(dy ∘ (y + remainder)), and log_sum_exp in units of log 2
//                       floor: 6 B T H D bytes read
//   sum_query_gradients dq = (sum of the splits' parts) / sqrt(D), in order
//                       floor: 4 bytes a number and split read, 2 written
//
// y + remainder is y as it was before rounding to bfloat16: attention_backward.cu says what delta of a rounded y would do.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/hopper_heads.cuh"

namespace train_qat::CU_BACKEND::attention {

// ---- the queries' numbers: for each tile of a head the log_sum_exp of its queries, then their delta. Those behind the sequence's
// end have log_sum_exp infinity, which makes their weights zero.

constexpr int row_kernel_threads = 256;

// y, remainder and dy of 8 columns at a time.
template <int D>
__global__ void __launch_bounds__(row_kernel_threads)
    query_statistics(float* statistics, const bfloat16* dy, const bfloat16* y, const bfloat16* remainder,
                     const float* log_sum_exp, int tile_queries, int padded_queries, AttentionSizes s) {
    constexpr int lanes = D / 8, rows = row_kernel_threads / lanes;
    const int blocks_of_head = padded_queries / rows;
    const int head = static_cast<int>(blockIdx.x) / blocks_of_head;
    const int query =
        static_cast<int>(blockIdx.x) % blocks_of_head * rows + static_cast<int>(threadIdx.x) / lanes;
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    float shift = INFINITY, delta = 0.0f;
    if (query < s.sequence) {
        const int64_t place =
            (int64_t{head / s.heads} * s.sequence + query) * s.y_columns + head % s.heads * D + 8 * lane;
        const Vector<bfloat16, 8> gradient = load_vector<8>(dy + place), rounded = load_vector<8>(y + place),
                                  rest = load_vector<8>(remainder + place);
        CU_UNROLL
        for (int i = 0; i < 8; ++i)
            delta += static_cast<float>(gradient[i]) *
                     (static_cast<float>(rounded[i]) + static_cast<float>(rest[i]));
        if (lane == 0)
            shift = load(log_sum_exp + int64_t{head} * s.sequence + query) * static_cast<float>(log2_e);
    }
    CU_UNROLL
    for (int bits = lanes / 2; bits > 0; bits /= 2) delta += shuffle_xor(delta, bits);
    if (lane != 0) return;
    float* const of_tile = statistics +
                           2 * (int64_t{head} * padded_queries + query / tile_queries * tile_queries) +
                           query % tile_queries;
    store(of_tile, shift);
    store(of_tile + tile_queries, delta);
}

// ---- sums of the queries' gradients: float32, in slices of a warp's 16 queries and 64 columns

constexpr int slice_queries = 16, slice_numbers = slice_queries * part_columns;
constexpr int slice_bytes = slice_numbers * static_cast<int>(sizeof(float));
constexpr int slice_row_numbers = 32,
              slice_rows = slice_numbers / slice_row_numbers;  // as tensor maps see them

// Of a slice: where the four numbers of lane 4g + t lie that belong to columns 8j + 2t and 8j + 2t + 1 of rows g and g + 8.
// Neither who writes them lane by lane nor who reads them g by g meets a bank twice.
CU_DEVICE int slice_place(int j, int g, int t) {
    return 4 * (32 * j + 8 * t + (g ^ 2 * t));
}
// Of a tile of a head: the first query and the first column of one of its slices, of which each consumer has four. A tile of 128
// queries has heads of 64, one of 64 heads of 128.
template <int D>
CU_DEVICE int slice_query(int slice) {
    return D == 64 ? slice * slice_queries : slice % 4 * slice_queries;
}
template <int D>
CU_DEVICE int slice_column(int slice) {
    return D == 64 ? 0 : slice / 4 * part_columns;
}

// sums: (splits, B*H, tiles, 8 slices), of which the splits 0 ... up to the query's tile of keys are there. A thread has 8 columns
// of two rows.
template <int D>
__global__ void __launch_bounds__(row_kernel_threads)
    sum_query_gradients(bfloat16* dqkv, const float* sums, int splits, int tiles, int tile_queries,
                        AttentionSizes s) {
    constexpr int slices = row_kernel_threads / (slice_numbers / 16);
    const int index = static_cast<int>(threadIdx.x) % 64, g = index % 8, j = index / 8;
    const int slice = static_cast<int>(blockIdx.x) * slices + static_cast<int>(threadIdx.x) / 64;
    const int tile = slice / consumer_warps % tiles, head = slice / consumer_warps / tiles;
    const int row = tile * tile_queries + slice_query<D>(slice % consumer_warps);
    const int64_t split_numbers = int64_t{static_cast<int>(gridDim.x)} * slices * slice_numbers;
    const int count = row / tile_rows < splits ? row / tile_rows + 1 : splits;
    const float* from = sums + int64_t{slice} * slice_numbers;
    float total[2][8] = {};
    for (int split = 0; split < count; ++split, from += split_numbers) {
        CU_UNROLL
        for (int t = 0; t < 4; ++t) {
            const Vector<float, 4> part = load_vector<4>(from + slice_place(j, g, t));
            CU_UNROLL
            for (int i = 0; i < 4; ++i) total[i / 2][2 * t + i % 2] += part[i];
        }
    }
    const HeadRows<bfloat16> queries = query_rows(dqkv, head / s.heads, head % s.heads, s);
    CU_UNROLL
    for (int half = 0; half < 2; ++half) {
        const int query = row + g + 8 * half;
        if (query >= s.sequence) continue;
        Vector<bfloat16, 8> rounded;
        CU_UNROLL
        for (int i = 0; i < 8; ++i) rounded[i] = static_cast<bfloat16>(total[half][i] * s.inverse_root);
        store_vector<8>(queries.row(query) + slice_column<D>(slice % consumer_warps) + 8 * j, rounded);
    }
}

}  // namespace train_qat::CU_BACKEND::attention
