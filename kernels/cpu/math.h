// Scalar functions written so that the compiler can vectorize loops over them.
#pragma once

#include <cstdint>
#include <cstring>

namespace train_qat {

// e^x with a relative error below 2e-7. Below -87.3 (results under 2^-126) it gives 0, above 88.7 infinity;
// NaN stays NaN. Method: x = n ln 2 + r with |r| <= ln(2)/2, e^x = 2^n e^r, e^r by its Taylor polynomial of
// degree 7.
inline float exponential(float x) {
    constexpr float log2_e = 1.44269504088896341f;
    constexpr float ln2_high = 0.693359375f;  // nine bits: n * ln2_high is exact
    constexpr float ln2_low = -2.12194440e-4f;
    constexpr float lowest = -87.33654f, highest = 88.72283f;
    const float clamped = x < lowest ? lowest : (x > highest ? highest : x);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    constexpr float round_magic = 12582912.0f;
    const float shifted = clamped * log2_e + round_magic;
    const float n = shifted - round_magic;
    const float r = (clamped - n * ln2_high) - n * ln2_low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // 2^n = 2 * 2^(n-1): n reaches 128 at the top and 2^128 is no float.
    int32_t integer;
    std::memcpy(&integer, &shifted, sizeof integer);
    const int32_t exponent = (integer - 0x4b400000) + 126;
    const int32_t bits = exponent << 23;
    float half_power;
    std::memcpy(&half_power, &bits, sizeof half_power);
    const float result = p * half_power * 2.0f;
    const float infinity = __builtin_inff();
    return x < lowest ? 0.0f : (x > highest ? infinity : result);
}

}  // namespace train_qat
