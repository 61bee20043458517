// Words of a row of numbers, packed codes or plain: `bits` a number, the first in the lowest bits. Codes become floats by
// their place in a mantissa: 2^23 | code is 2^23 + code.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/platform/portable.cuh"

namespace train_qat::CU_BACKEND {

// Number `i` of a word: a code (1, 2, 4 or 8 bits), a bfloat16 (16) or a float32 (32).
template <int bits>
CU_DEVICE float number_of_word(uint32_t word, int i) {
    uint32_t pattern;
    float number;
    if constexpr (bits == 32)
        pattern = word;
    else if constexpr (bits == 16)
        pattern = i == 0 ? word << 16 : word & 0xffff0000u;
    else
        pattern = (word >> (i * bits) & ((1u << bits) - 1u)) | 0x4b000000u;
    memcpy(&number, &pattern, sizeof number);
    return bits < 16 ? number - 8388608.0f : number;
}

// Calls function.template operator()<bits>().
template <typename Function>
void with_bits(int bits, Function&& function) {
    switch (bits) {
        case 1:
            return function.template operator()<1>();
        case 2:
            return function.template operator()<2>();
        case 4:
            return function.template operator()<4>();
        case 8:
            return function.template operator()<8>();
        case 16:
            return function.template operator()<16>();
        default:
            return function.template operator()<32>();
    }
}

}  // namespace train_qat::CU_BACKEND
