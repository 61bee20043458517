// How the kernels over (rows, columns) share out their work: a thread owns `width` neighbouring columns for a
// tile of rows. What belongs to columns (scales, weights, sums over rows) then crosses memory once a tile and
// not once a row, and rows are read in whole vectors, neighbouring threads side by side.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

// Threads of each block, a multiple of 32 and at most `most`, when as few blocks as possible share `count`
// items evenly.
inline unsigned balanced_threads(int64_t count, int64_t most) {
    const int64_t blocks = (count + most - 1) / most;
    const int64_t each = (count + blocks - 1) / blocks;
    return static_cast<unsigned>((each + 31) / 32 * 32);
}

// Whether accesses of `width` elements may start at all these addresses and at every row of `columns`
// elements behind them. Null is an absent argument.
template <int width, typename... T>
bool rows_aligned(int64_t columns, const T*... addresses) {
    return columns % width == 0 && (vector_aligned<width>(addresses) && ...);
}

// Calls function.template operator()<width>(): whole vectors where `aligned`, single elements elsewhere.
template <int vector_width, typename Function>
void with_width(bool aligned, Function&& function) {
    if (aligned)
        function.template operator()<vector_width>();
    else
        function.template operator()<1>();
}

// `width` float32 numbers in accesses of at most 16 bytes; ones where there are none.
template <int width>
CU_DEVICE void load_scale(float (&scale)[width], const float* address) {
    constexpr int step = width < 4 ? width : 4;
    CU_UNROLL
    for (int i = 0; i < width; i += step) {
        Vector<float, step> part;
        if (address != nullptr) part = load_vector<step>(address + i);
        CU_UNROLL
        for (int j = 0; j < step; ++j) scale[i + j] = address != nullptr ? part[j] : 1.0f;
    }
}

// The other way: `width` float32 numbers to memory.
template <int width>
CU_DEVICE void store_floats(float* address, const float (&values)[width]) {
    constexpr int step = width < 4 ? width : 4;
    CU_UNROLL
    for (int i = 0; i < width; i += step) {
        Vector<float, step> part;
        CU_UNROLL
        for (int j = 0; j < step; ++j) part[j] = values[i + j];
        store_vector<step>(address + i, part);
    }
}

// The block's threads bring their numbers together: every thread gets the result, of a fixed order. scratch:
// a number for each warp, which may be used again at once. (block_sum, for blocks whose size is known at run
// time only, and for other operations than the sum.)
template <typename T, typename Combine>
CU_DEVICE T combine_over_block(T of_warp, T* scratch, Combine&& combine) {
    if (lane_index() == 0) store_shared(scratch + warp_index(), of_warp);
    block_sync();
    T result = load_shared(scratch);
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int warp = 1; warp < warps; ++warp) result = combine(result, load_shared(scratch + warp));
    block_sync();
    return result;
}
template <typename T>
CU_DEVICE T sum_over_block(T value, T* scratch) {
    return combine_over_block(warp_sum(value), scratch, [](T a, T b) { return a + b; });
}
template <typename T>
CU_DEVICE T max_over_block(T value, T* scratch) {
    return combine_over_block(warp_max(value), scratch, [](T a, T b) { return b > a ? b : a; });
}

}  // namespace train_qat::CU_BACKEND
