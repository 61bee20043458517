// Causal attention, backward, by Hopper's own instructions: how many blocks share a head, workspace, launch. The kernel:
// hopper_backward.cuh.
#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/hopper_backward.cuh"

namespace train_qat::CU_BACKEND {

using namespace attention;

namespace {

// Each split has a part of dq of its own, 4 bytes a number.
constexpr int most_splits = 8;

// Tiles of keys and queries that the busiest of a head's blocks multiplies.
int64_t largest_split(int tiles, int splits) {
    int64_t largest = 0;
    for (int split = 0; split < splits; ++split) {
        int64_t pairs = 0;
        for (int round = 0, tile; (tile = key_tile(round, split, splits)) < tiles; ++round)
            pairs += tiles - tile;
        largest = std::max(largest, pairs);
    }
    return largest;
}

// The fewest of about the shortest time. Follows from shape and device alone: another number has other bits.
int choose_splits(const AttentionShape& shape, int multiprocessors) {
    const int tiles = static_cast<int>(blocks_for(shape.sequence, tile_rows));
    const auto time = [&](int splits) {
        return static_cast<int64_t>(blocks_for(shape.batch * shape.kv_heads * splits, multiprocessors)) *
               largest_split(tiles, splits);
    };
    const int most = std::min(tiles, most_splits);
    int64_t shortest = time(1);
    for (int splits = 2; splits <= most; ++splits) shortest = std::min(shortest, time(splits));
    int splits = 1;
    while (16 * time(splits) > 17 * shortest) ++splits;
    return splits;
}

}  // namespace

int64_t hopper_attention_backward_workspace(const Device& device, const AttentionShape& shape) {
    require_hopper_heads(DType::bfloat16, shape.head_dim);
    const int splits = choose_splits(shape, device.properties().multiprocessors);
    return shape.head_dim == 64 ? BackwardWorkspace<HopperBackwardForm<64>>(shape, splits).bytes()
                                : BackwardWorkspace<HopperBackwardForm<128>>(shape, splits).bytes();
}

void hopper_attention_backward(Device& device, const AttentionBackward& a) {
    require_hopper_heads(a.qkv.dtype, a.shape.head_dim);
    const auto launch = a.shape.head_dim == 64 ? launch_hopper_backward<HopperBackwardForm<64>>
                                               : launch_hopper_backward<HopperBackwardForm<128>>;
    launch(device.stream(), a, choose_splits(a.shape, device.properties().multiprocessors));
}

}  // namespace train_qat::CU_BACKEND
