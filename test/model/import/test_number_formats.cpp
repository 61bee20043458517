#include "model/import/number_formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "test/support/catch.h"
#include "test/support/errors.h"
#include "test/support/hugging_face_folder.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Not by a conversion: threads may read denormal numbers as zero.
double exact(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const int exponent = bits >> 23 & 0xff;
    const double mantissa = (bits & 0x7fffff) + (exponent == 0 ? 0 : 0x1p23);
    const double size = std::ldexp(mantissa, std::max(exponent, 1) - 127 - 23);
    return bits >> 31 ? -size : size;
}

}  // namespace

TEST_CASE("every float16 and bfloat16 number is widened exactly", "[import]") {
    for (const char* dtype : {"F16", "BF16"}) {
        FolderTensor all{dtype, {65536}};
        for (uint32_t bits = 0; bits < 65536; ++bits) {
            const auto number = static_cast<uint16_t>(bits);
            all.bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
        }
        std::vector<float> values(65536, 12345.0f);
        widen(dtype, all.bytes.data(), 65536, values.data());
        const uint32_t infinite = dtype == std::string("F16") ? 0x7c00 : 0x7f80;
        int64_t wrong = 0;
        for (uint32_t bits = 0; bits < 65536; ++bits) {
            const uint32_t size = bits & 0x7fff;
            const float value = values[bits];
            bool right;
            if (size > infinite)
                right = std::isnan(value);
            else if (size == infinite)
                right = std::isinf(value);
            else
                right = exact(value) == all.value(bits);
            wrong += !right || (!std::isnan(value) && std::signbit(value) != (bits >> 15 != 0));
        }
        INFO(dtype);
        CHECK(wrong == 0);
    }
}

TEST_CASE("float32 numbers stay as they are, other dtypes are not read", "[import]") {
    const std::vector<float> numbers = {1.5f, -0.0f, 1e-42f, 3e38f};
    std::vector<float> values(numbers.size());
    widen("F32", reinterpret_cast<const char*>(numbers.data()), 4, values.data());
    CHECK(std::memcmp(values.data(), numbers.data(), 16) == 0);
    for (const char* dtype : {"F64", "I8", "F8_E4M3", ""}) {
        CHECK_FALSE(is_readable(dtype));
        CHECK_THROWS_AS(widen(dtype, nullptr, 0, nullptr), std::logic_error);
    }
}
