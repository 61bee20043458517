// Floor: the partial sums once, of at most 1024 tiles. Each column is summed by `summing_warps` warps in double, in fixed
// order.
#include "kernels/cuda/rows/column_sums.h"

#include <algorithm>

namespace train_qat::CU_BACKEND {

namespace {

constexpr int summing_warps = 16;

// result (+)= the sum of the partials (tiles, C): a lane a column, the tiles dealt out to the warps.
__global__ void __launch_bounds__(summing_warps * 32)
    sum_columns(float* result, const float* partials, int64_t tiles, int64_t columns, bool accumulate) {
    CU_SHARED(sums, double[summing_warps][32]);
    const int lane = lane_index(), warp = warp_index();
    const int64_t column = int64_t{blockIdx.x} * 32 + lane;
    constexpr int in_flight = 8;
    double sum = 0;
    for (int64_t first = warp; first < tiles; first += in_flight * summing_warps) {
        float part[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int64_t tile = first + i * summing_warps;
            part[i] = tile < tiles && column < columns ? load(partials + tile * columns + column) : 0.0f;
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) sum += part[i];
    }
    store_shared(&sums[warp][lane], sum);
    block_sync();
    if (warp > 0 || column >= columns) return;
    double total = accumulate ? static_cast<double>(load(result + column)) : 0.0;
    for (int i = 0; i < summing_warps; ++i) total += load_shared(&sums[i][lane]);
    store(result + column, static_cast<float>(total));
}

constexpr int64_t fewest_rows = 16, most_tiles = 1024;

}  // namespace

int64_t summed_rows(int64_t rows) {
    return std::max(fewest_rows, (rows + most_tiles - 1) / most_tiles);
}

int64_t partial_sum_bytes(int64_t rows, int64_t columns) {
    const int64_t tiles = std::min<int64_t>(blocks_for(rows, fewest_rows), most_tiles);
    return tiles * columns * static_cast<int64_t>(sizeof(float));
}

void sum_partials(Device& device, float* result, const float* partials, int64_t tiles, int64_t columns,
                  bool accumulate) {
    CU_LAUNCH(sum_columns, blocks_for(columns, 32), summing_warps * 32, 0, device.stream(), result, partials,
              tiles, columns, accumulate);
}

}  // namespace train_qat::CU_BACKEND
