// Where a thread stands in a ring of stages between a producer and consumers (hopper.cuh).
#pragma once

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

// first_parity: 0 for consumers, who wait until a stage is full, 1 for the producer, for whom a new one is empty.
template <int stages>
struct RingPosition {
    int stage = 0;
    uint32_t parity;  // to wait for
    CU_DEVICE explicit RingPosition(uint32_t first_parity) : parity(first_parity) {}
    CU_DEVICE void advance() {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }
};

}  // namespace train_qat::CU_BACKEND
