// Functions of a vector of floats (products/elements.h), in plain C++ and, where the compiler would not find them, in
// instructions.
#pragma once

#include "kernels/cpu/products/elements.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace train_qat {

// Also the result of comparisons: 0 or -1.
using IntVector = int32_t __attribute__((vector_size(vector_lanes * sizeof(int32_t))));

#if defined(__AVX512F__)
inline constexpr IntVector lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX__)
inline constexpr IntVector lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
inline constexpr IntVector lane_numbers = {0, 1, 2, 3};
#endif

// b where one is NaN. GCC makes two instructions of these comparisons.
inline FloatVector larger_of(const FloatVector& a, const FloatVector& b) {
#if defined(__AVX512F__)
    return reinterpret_cast<FloatVector>(
        _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}
inline FloatVector smaller_of(const FloatVector& a, const FloatVector& b) {
#if defined(__AVX512F__)
    return reinterpret_cast<FloatVector>(
        _mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a < b ? a : b;
#endif
}

// The sum, or the largest, of the lanes, in every lane.
inline FloatVector sum_of_lanes(FloatVector vector) {
    for (int distance = vector_lanes / 2; distance > 0; distance /= 2)
        vector += __builtin_shuffle(vector, lane_numbers ^ distance);
    return vector;
}
inline FloatVector largest_of_lanes(FloatVector vector) {
    for (int distance = vector_lanes / 2; distance > 0; distance /= 2)
        vector = larger_of(__builtin_shuffle(vector, lane_numbers ^ distance), vector);
    return vector;
}

// 2^t with a relative error below 2e-7 for t up to 127. Results under 2^-126 are 0, also for -infinity; NaN and
// +infinity do not come out as finite numbers. Method: t = n + f with f in [0, 1], 2^f by the polynomial of degree 5
// with the smallest relative error (8e-8) among those that are exact for f = 0.
inline FloatVector power_of_two(const FloatVector& t) {
    constexpr float c1 = 0.69315129518508911f, c2 = 0.24016444385051727f, c3 = 0.05579991266131401f,
                    c4 = 0.009017029777169228f, c5 = 0.0018671301659196615f;
#if defined(__AVX512DQ__)
    constexpr int toward_minus_infinity = 0x9;
    const auto f =
        reinterpret_cast<FloatVector>(_mm512_reduce_ps(reinterpret_cast<__m512>(t), toward_minus_infinity));
    const FloatVector power = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + 1.0f;
    // Not without the mask: there GCC 12 warns of an uninitialized variable of its own header.
    return reinterpret_cast<FloatVector>(
        _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(t)));
#else
    constexpr float lowest = -126.0f, highest = 127.0f;
    const FloatVector bounded = t < lowest    ? FloatVector{} + lowest
                                : t > highest ? FloatVector{} + highest
                                              : t;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    constexpr float round_magic = 12582912.0f;
    const FloatVector shifted = (bounded - 0.5f) + round_magic;
    const FloatVector f = bounded - (shifted - round_magic);
    const FloatVector power = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + 1.0f;
    const IntVector exponent = (reinterpret_cast<IntVector>(shifted) - 0x4b400000) + 127;
    const FloatVector result = power * reinterpret_cast<FloatVector>(exponent << 23);
    return t < lowest ? FloatVector{} : t > highest ? t * __builtin_inff() : result;
#endif
}

// e^x with a relative error below 1e-7. Below -87.7 (results under 2^-126) it is 0, above 88.4 (over 2^127.5) infinity; NaN
// stays NaN. Method: x = n ln 2 + r with |r| <= ln(2)/2, e^x = 2^n e^r, e^r by the polynomial of degree 6 with the smallest
// relative error (3e-9) among those that begin with 1 + r.
inline FloatVector exponential(const FloatVector& x) {
    constexpr float log2_e = 1.44269504088896341f;
    constexpr float ln2_high = 0.693359375f;  // nine bits: n * ln2_high is exact
    constexpr float ln2_low = -2.12194440e-4f;
    constexpr float c2 = 0.49999994f, c3 = 0.16666521f, c4 = 0.04166839f, c5 = 0.0083687454f,
                    c6 = 0.0013814541f;
    // At these bounds n is -127 and 128, and what becomes 2^n below is 0 and infinity.
    const FloatVector bounded = smaller_of(FloatVector{} + 88.7f, larger_of(FloatVector{} - 88.0f, x));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum: here n + 127, the exponent of 2^n.
    constexpr float round_magic = 12582912.0f + 127.0f;
    const FloatVector shifted = bounded * log2_e + round_magic;
    const FloatVector n = shifted - round_magic;
    const FloatVector r = (bounded - n * ln2_high) - n * ln2_low;
    const FloatVector p = ((((c6 * r + c5) * r + c4) * r + c3) * r + c2) * r + 1.0f;
    return (p * r + 1.0f) * reinterpret_cast<FloatVector>(reinterpret_cast<IntVector>(shifted) << 23);
}

// log2 x with an absolute error below 2e-7 between the powers of two, for normal x; NaN and infinity stay. Method:
// x = 2^n m with m in [2/3, 4/3), log2 m = 2 / ln 2 artanh u with u = (m - 1) / (m + 1), by its series.
inline FloatVector binary_logarithm(const FloatVector& x) {
    constexpr int32_t two_thirds = 0x3f2aaaab;
    constexpr float factor = 2.88539008177792681f;  // 2 / ln 2
    const IntVector bits = reinterpret_cast<IntVector>(x);
    const IntVector n = (bits - two_thirds) >> 23;
    const FloatVector m = reinterpret_cast<FloatVector>(bits - (n << 23));
    const FloatVector u = (m - 1.0f) / (m + 1.0f);
    const FloatVector square = u * u;
    constexpr float c3 = factor / 3, c5 = factor / 5, c7 = factor / 7, c9 = factor / 9;
    const FloatVector series = (((c9 * square + c7) * square + c5) * square + c3) * square + factor;
    const FloatVector result = __builtin_convertvector(n, FloatVector) + u * series;
    return x < __builtin_inff() ? result : x;
}

}  // namespace train_qat
