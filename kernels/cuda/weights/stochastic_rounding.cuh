// Rounding to bfloat16 up or down by chance, so that the expectation is the number itself: a weight that is
// stored in bfloat16 then follows steps far below its last place on average, where rounding to nearest would
// stand still.
//
// The chance of a weight is a function of its place and of the step alone, by the counter-based generator
// Philox4x32-10 ("Parallel random numbers: as easy as 1, 2, 3", Salmon et al., 2011):
//     counter   (element / 4, low and high word;  the parameter's number in its model;  0)
//     key       the step, low and high word
//     element   takes word element % 4 of the four that come out
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

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

// The two neighbours of `value` in bfloat16 differ by 2^16 in its bits: adding 0 ... 2^16 - 1 of equal chance
// before cutting off crosses to the one further from zero as often as the value is near it. Infinity and NaN
// stay.
TRAIN_QAT_HOST_DEVICE inline bfloat16 round_by_chance(float value, uint32_t random) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    if ((word & 0x7f800000u) == 0x7f800000u) return bfloat16(value);
    bfloat16 result;
    result.bits = static_cast<uint16_t>((word + (random >> 16)) >> 16);
    return result;
}

// `width` neighbouring weights from `element` of the parameter on, a multiple of width; width divides 4.
template <int width>
CU_DEVICE Vector<bfloat16, width> round_by_chance(const Vector<float, width>& values, int64_t element,
                                                  uint32_t parameter, uint64_t step) {
    const auto place = static_cast<uint64_t>(element) / 4;
    const Philox4 random =
        philox4x32({{static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32), parameter, 0u}},
                   static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32));
    Vector<bfloat16, width> result;
    if constexpr (width == 1) {
        const int i = static_cast<int>(element % 4);
        const uint32_t low = i == 0 ? random.word[0] : random.word[1];
        const uint32_t high = i == 2 ? random.word[2] : random.word[3];
        result[0] = round_by_chance(values[0], i < 2 ? low : high);
    } else {
        static_assert(width == 4);
        CU_UNROLL
        for (int j = 0; j < width; ++j) result[j] = round_by_chance(values[j], random.word[j]);
    }
    return result;
}

}  // namespace train_qat::CU_BACKEND
