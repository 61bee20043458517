// What products multiply: elements, and vectors of floats.
//
// In float32 an element is one number. In bfloat16, on processors with a dot product of pairs, it is two neighbours of the
// summed index: one instruction multiplies and adds both. An odd end of the summed index is filled with zero.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "kernels/tensor.h"

namespace train_qat {

// As many floats as a register holds: GCC keeps wider vectors in memory, ten times slower.
#if defined(__AVX512F__)
inline constexpr int64_t vector_lanes = 16;
#elif defined(__AVX__)
inline constexpr int64_t vector_lanes = 8;
#else
inline constexpr int64_t vector_lanes = 4;
#endif
using FloatVector = float __attribute__((vector_size(vector_lanes * sizeof(float))));

// Two bfloat16 numbers, the first in the lower half.
struct BFloat16Pair {
    uint32_t bits;
};

template <typename Element>
inline constexpr int64_t element_width = 1;
template <>
inline constexpr int64_t element_width<BFloat16Pair> = 2;

// The element of a compute type.
template <typename T>
struct TileElement {
    using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct TileElement<bfloat16> {
    using type = BFloat16Pair;
};
#endif

// Whether this build multiplies bfloat16.
inline constexpr bool built_for_bfloat16 = element_width<TileElement<bfloat16>::type> == 2;

inline int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Elements that hold `count` numbers.
template <typename Element>
inline int64_t elements_for(int64_t count) {
    return (count + element_width<Element> - 1) / element_width<Element>;
}

inline FloatVector load_vector(const float* source) {
    FloatVector vector;
    std::memcpy(&vector, source, sizeof vector);
    return vector;
}
inline void store_vector(float* destination, const FloatVector& vector) {
    std::memcpy(destination, &vector, sizeof vector);
}

// sum += left * right for the columns of a vector.
inline void multiply_add(FloatVector& sum, float left, const float& right) {
    sum += left * load_vector(&right);
}
#if defined(__AVX512BF16__)
inline void multiply_add(FloatVector& sum, BFloat16Pair left, const BFloat16Pair& right) {
    sum = reinterpret_cast<FloatVector>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                         reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(left.bits))),
                         reinterpret_cast<__m512bh>(_mm512_loadu_si512(&right))));
}
#endif

// ---- packing

template <typename T>
inline uint32_t bfloat16_bits(T value) {
    return bfloat16(static_cast<float>(value)).bits;
}
inline uint32_t bfloat16_bits(bfloat16 value) {
    return value.bits;
}

template <typename T>
inline void join(float& element, T value, T) {
    element = static_cast<float>(value);
}
template <typename T>
inline void join(BFloat16Pair& element, T first, T second) {
    element.bits = bfloat16_bits(first) | bfloat16_bits(second) << 16;
}

// count elements, each of a number of `first` and, where elements are pairs, one of `second`.
template <typename Element, typename T>
inline void join_rows(Element* __restrict out, const T* __restrict first, const T* __restrict second,
                      int64_t count) {
    int64_t c = 0;
    if constexpr (std::is_same_v<Element, BFloat16Pair> && std::is_same_v<T, bfloat16>) {
        // The loop below, as compilers do not see it: two vectors of 32 numbers interleaved.
        using Numbers = uint16_t __attribute__((vector_size(64)));
        for (; c + 32 <= count; c += 32) {
            Numbers a, b;
            std::memcpy(&a, first + c, sizeof a);
            std::memcpy(&b, second + c, sizeof b);
            const Numbers low =
                __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40,
                                        9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
            const Numbers high =
                __builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
            std::memcpy(static_cast<void*>(out + c), &low, sizeof low);
            std::memcpy(static_cast<void*>(out + c + 16), &high, sizeof high);
        }
    }
    for (; c < count; ++c) join(out[c], first[c], second[c]);
}

// Right operand from rows (inner, columns): two rows become a row of elements. Columns up to packed_stride
// and the missing row of an odd end are zero.
template <typename Element, typename T>
inline void pack_right(Element* __restrict packed, int64_t packed_stride, const T* __restrict source,
                       int64_t stride, int64_t inner, int64_t columns) {
    constexpr int64_t width = element_width<Element>;
    for (int64_t k = 0; k < inner; k += width) {
        Element* __restrict out = packed + k / width * packed_stride;
        const T* __restrict first = source + k * stride;
        const T* __restrict second = source + (k + width - 1) * stride;
        if (k + width <= inner)
            join_rows(out, first, second, columns);
        else
            for (int64_t c = 0; c < columns; ++c) join(out[c], first[c], T());
        for (int64_t c = columns; c < packed_stride; ++c) join(out[c], T(), T());
    }
}

}  // namespace train_qat
