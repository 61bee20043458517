#include "model/import/number_formats.h"

#include <bit>
#include <cstring>
#include <stdexcept>

namespace train_qat {

float widen_float16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
    if (exponent == 0) {
        const float size = static_cast<float>(mantissa) * 0x1p-24f;
        return sign == 0 ? size : -size;
    }
    // The exponents' biases are 15 and 127; the largest means infinite or NaN in both formats.
    const uint32_t widened = exponent == 31 ? 255 : exponent + 127 - 15;
    return std::bit_cast<float>(sign | widened << 23 | mantissa << 13);
}

bool is_readable(const std::string& dtype) {
    return dtype == "F32" || dtype == "BF16" || dtype == "F16";
}

void widen(const std::string& dtype, const char* source, int64_t count, float* values) {
    if (dtype == "F32") {
        std::memcpy(values, source, static_cast<size_t>(count) * sizeof(float));
        return;
    }
    if (!is_readable(dtype)) throw std::logic_error("widen: dtype " + dtype);
    const bool narrow_exponent = dtype == "F16";
    for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, source + 2 * i, sizeof bits);
        values[i] =
            narrow_exponent ? widen_float16(bits) : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
    }
}

}  // namespace train_qat
