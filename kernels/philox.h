// Philox4x32-10, a counter-based generator of random numbers ("Parallel random numbers: as easy as 1, 2, 3",
// Salmon et al., 2011): four words of 32 random bits as a function of a counter and a key, so that any thread
// of any process finds the number of a place without those before it.
//
// Who draws what, so that no two draw the same:
//     stochastic rounding   key: the step   counter: element / 4 (64 bits), the parameter's number, 0
//     initial weights       key: the seed   counter: element / 4 (64 bits), the parameter's number, 1
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace train_qat {

struct Philox4 {
    uint32_t word[4];
};

TRAIN_QAT_HOST_DEVICE inline Philox4 philox4x32(Philox4 counter, uint32_t key0, uint32_t key1) {
    constexpr uint32_t multiplier0 = 0xd2511f53u, multiplier1 = 0xcd9e8d57u;
    constexpr uint32_t golden_ratio = 0x9e3779b9u, root_of_three_minus_one = 0xbb67ae85u;
    constexpr int rounds = 10;
    for (int round = 0; round < rounds; ++round) {
        const uint64_t product0 = static_cast<uint64_t>(multiplier0) * counter.word[0];
        const uint64_t product1 = static_cast<uint64_t>(multiplier1) * counter.word[2];
        counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                    static_cast<uint32_t>(product1),
                    static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                    static_cast<uint32_t>(product0)}};
        key0 += golden_ratio;
        key1 += root_of_three_minus_one;
    }
    return counter;
}

}  // namespace train_qat
