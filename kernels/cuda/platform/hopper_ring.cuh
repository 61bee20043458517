// The ring of stages between the producer and the consumers of a kernel for Hopper (its protocol: hopper.cuh).
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/hopper.cuh"

namespace train_qat::CU_BACKEND {

struct RingBarriers {
    Barrier *full, *empty;  // one of each for every stage
};

// By one thread, before a block_sync().
template <int stages>
CU_DEVICE void init_ring(RingBarriers barriers, int consuming_warps) {
    for (int stage = 0; stage < stages; ++stage) {
        barrier_init(barriers.full + stage, 1);
        barrier_init(barriers.empty + stage, consuming_warps);
    }
    fence_barrier_init();
    fence_async_proxy();
}

// By one lane of each warp that has read a stage.
CU_DEVICE void release_stage(RingBarriers barriers, int stage) {
    if (lane_index() == 0) barrier_arrive(barriers.empty + stage);
}

// Where a producer (first parity 1) or a consumer (0) stands.
template <int stages>
struct RingPlace {
    int stage = 0;
    uint32_t parity;
    CU_DEVICE explicit RingPlace(uint32_t first_parity) : parity(first_parity) {}
    CU_DEVICE void advance() {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }
};

}  // namespace train_qat::CU_BACKEND
