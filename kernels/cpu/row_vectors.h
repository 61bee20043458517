// Loops over the numbers of a row, a vector at a time, whatever type they are stored in. Compilers find the vectors of
// plain loops too, but not the instruction that rounds to bfloat16, and they add the lanes of a sum one after another.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/products/elements.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace train_qat {

using HalfWidthVector = uint16_t __attribute__((vector_size(vector_lanes * sizeof(uint16_t))));
using WideBitsVector = uint32_t __attribute__((vector_size(vector_lanes * sizeof(uint32_t))));

inline FloatVector load_numbers(const float* source) {
    return load_vector(source);
}
inline FloatVector load_numbers(const bfloat16* source) {
#if defined(__AVX512F__)
    // Not without the mask: there GCC 12 warns of an uninitialized variable of its own header.
    const auto wide = reinterpret_cast<WideBitsVector>(
        _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
#else
    HalfWidthVector bits;
    std::memcpy(&bits, source, sizeof bits);
    const WideBitsVector wide = __builtin_convertvector(bits, WideBitsVector);
#endif
    return reinterpret_cast<FloatVector>(wide << 16);
}

inline void store_numbers(float* destination, const FloatVector& vector) {
    store_vector(destination, vector);
}
// Rounds as bfloat16 does.
inline void store_numbers(bfloat16* destination, const FloatVector& vector) {
#if defined(__AVX512BF16__)
    const __m256bh bits = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(vector));
#else
    const WideBitsVector word = reinterpret_cast<WideBitsVector>(vector);
    const WideBitsVector nearest = word + 0x7fffu + ((word >> 16) & 1u);
    const WideBitsVector rounded = vector == vector ? nearest : (word | 0x00400000u);
    const HalfWidthVector bits = __builtin_convertvector(rounded >> 16, HalfWidthVector);
#endif
    std::memcpy(static_cast<void*>(destination), &bits, sizeof bits);
}

// How the body of a loop reads and writes the vector at its position: a whole one, or the `count` numbers that are left.
struct WholeVector {
    template <typename T>
    FloatVector load(const T* source, float = 0.0f) const {
        return load_numbers(source);
    }
    template <typename T>
    void store(T* destination, const FloatVector& vector) const {
        store_numbers(destination, vector);
    }
};
struct PartOfVector {
    int64_t count;

    // missing: what the lanes hold that have no number.
    template <typename T>
    FloatVector load(const T* source, float missing = 0.0f) const {
        T numbers[vector_lanes];
        for (int64_t i = 0; i < vector_lanes; ++i) numbers[i] = missing;
        std::memcpy(static_cast<void*>(numbers), source, static_cast<size_t>(count) * sizeof(T));
        return load_numbers(numbers);
    }
    template <typename T>
    void store(T* destination, const FloatVector& vector) const {
        T numbers[vector_lanes];
        store_numbers(numbers, vector);
        std::memcpy(static_cast<void*>(destination), numbers, static_cast<size_t>(count) * sizeof(T));
    }
};

// body(position, how to load and store there) for the vectors of [0, count).
template <typename Body>
inline void for_vectors(int64_t count, Body&& body) {
    int64_t i = 0;
    for (; i + vector_lanes <= count; i += vector_lanes) body(i, WholeVector{});
    if (i < count) body(i, PartOfVector{count - i});
}

// Asks for `count` numbers that are read soon, as those of the next row: processors look ahead by themselves, but not far
// enough, and not beyond a page of 4096 bytes. Any address will do.
template <typename T>
inline void prefetch(const T* numbers, int64_t count) {
    constexpr int64_t numbers_per_line = 64 / sizeof(T);
    for (int64_t i = 0; i < count; i += numbers_per_line) __builtin_prefetch(numbers + i);
}

}  // namespace train_qat
