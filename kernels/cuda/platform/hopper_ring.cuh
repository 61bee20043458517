// The producer and the two consumers of a kernel for Hopper, a warpgroup each, and the ring of stages between them (its
// protocol: hopper.cuh).
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/hopper.cuh"

namespace train_qat::CU_BACKEND {

constexpr int ring_consumers = 2, ring_threads = (1 + ring_consumers) * warpgroup_threads;

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

// Behind a block_sync(): one thread of the first warpgroup calls produce(), the others consume(number of the consumer).
template <typename Produce, typename Consume>
CU_DEVICE void divide_roles(Produce&& produce, Consume&& consume) {
    // By a shuffle, so that the compiler knows that a warp's threads agree: what depends on it, as the stages of a consumer's
    // own ring, then lies in uniform registers, where wgmma wants its descriptors.
    const int role = shuffle(static_cast<int>(threadIdx.x) / warpgroup_threads, 0);
    if (role == 0) {
        shrink_registers<24>();
        if (threadIdx.x == 0) produce();
    } else {
        grow_registers<240>();
        consume(role - 1);
    }
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
