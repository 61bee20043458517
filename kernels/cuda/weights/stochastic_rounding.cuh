// Rounding to bfloat16 up or down by chance, so that the expectation is the number itself: a weight that is
// stored in bfloat16 then follows steps far below its last place on average, where rounding to nearest would
// stand still.
//
// The chance of a weight is a function of its place and of the step alone, by kernels/philox.h:
//     counter   (element / 4, low and high word;  the parameter's number in its model;  0)
//     key       the step, low and high word
//     element   takes word element % 4 of the four that come out
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/platform/portable.cuh"
#include "kernels/philox.h"

namespace train_qat::CU_BACKEND {

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
