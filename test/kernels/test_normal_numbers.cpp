// Philox by its authors' answers; normal numbers by an oracle, by their statistics, and in any division.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "kernels/normal_numbers.h"
#include "kernels/philox.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

std::vector<float> drawn(const NormalSequence& sequence, int64_t first, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count) + 2, 77.0f);
    fill_normal(values.data() + 1, first, count, sequence);
    CHECK((values.front() == 77 && values.back() == 77));
    return {values.begin() + 1, values.end() - 1};
}

// Box and Muller's method in double precision. `radius`: of the pair that the element belongs to.
struct Expected {
    double value, radius;
};
Expected expected(const NormalSequence& sequence, int64_t element) {
    const auto place = static_cast<uint64_t>(element) / 4;
    const Philox4 random =
        philox4x32({{static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32), sequence.stream, 1}},
                   static_cast<uint32_t>(sequence.seed), static_cast<uint32_t>(sequence.seed >> 32));
    const int pair = static_cast<int>(element % 4 / 2);
    // u has the 24 bits of a float: near one the logarithm depends on how it was rounded.
    const float u = (static_cast<float>(static_cast<int32_t>(random.word[2 * pair] >> 1)) + 0.5f) * 0x1p-31f;
    const double radius = sequence.deviation * std::sqrt(-2 * std::log(static_cast<double>(u)));
    const double angle = 2 * std::numbers::pi * random.word[2 * pair + 1] * 0x1p-32;
    return {radius * (element % 2 == 0 ? std::cos(angle) : std::sin(angle)), radius};
}

}  // namespace

TEST_CASE("Philox4x32-10 by its authors' known answers", "[normal_numbers]") {
    const auto is = [](const Philox4& actual, std::vector<uint32_t> answer) {
        return std::equal(answer.begin(), answer.end(), actual.word);
    };
    CHECK(is(philox4x32({{0, 0, 0, 0}}, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    const uint32_t ones = 0xffffffff;
    CHECK(is(philox4x32({{ones, ones, ones, ones}}, ones, ones),
             {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    CHECK(is(philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
             {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST_CASE("normal numbers are Box and Muller's of Philox's words", "[normal_numbers]") {
    Random random(21);
    for (int i = 0; i < 20; ++i) {
        const NormalSequence sequence{static_cast<uint64_t>(random.integer(0, INT64_MAX - 1)),
                                      static_cast<uint32_t>(random.integer(0, 0xffffffff)),
                                      static_cast<float>(std::exp2(random.uniform() * 20 - 10))};
        const int64_t first = random.integer(0, int64_t{1} << 40), count = random.integer(1, 5000);
        const std::vector<float> values = drawn(sequence, first, count);
        for (int64_t j = 0; j < count; ++j) {
            const auto [value, radius] = expected(sequence, first + j);
            INFO("element " << first + j << " of seed " << sequence.seed);
            REQUIRE(std::abs(values[j] - value) <= 5e-7 * radius);
        }
    }
}

TEST_CASE("a normal number depends on its sequence and index alone", "[normal_numbers]") {
    Random random(22);
    const NormalSequence sequence{9, 4, 0.02f};
    const int64_t first = random.integer(0, int64_t{1} << 35), count = 20000;
    const std::vector<float> values = drawn(sequence, first, count);
    const int threads = omp_get_max_threads();
    for (int used : {1, 2, 3, 7}) {
        omp_set_num_threads(used);
        INFO(used << " threads");
        CHECK(drawn(sequence, first, count) == values);
        std::vector<float> parts;
        while (static_cast<int64_t>(parts.size()) < count) {
            const auto done = static_cast<int64_t>(parts.size());
            const std::vector<float> part =
                drawn(sequence, first + done, std::min(count - done, random.integer(0, 700)));
            parts.insert(parts.end(), part.begin(), part.end());
        }
        CHECK(parts == values);
    }
    omp_set_num_threads(threads);
    // The same on every machine, whatever it is compiled for.
    const std::vector<float> some = drawn({1234, 5, 1.0f}, (int64_t{1} << 34) - 2, 4);
    CHECK(some == std::vector<float>{-0x1.5d163ep-4f, -0x1.1facbap-3f, -0x1.4ddd34p+0f, 0x1.e28afep-2f});
}

TEST_CASE("normal numbers are normal", "[normal_numbers]") {
    const int64_t count = 1 << 20;
    const double n = count;
    for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 63}) {
        INFO("seed " << seed);
        const std::vector<float> values = drawn({seed, 2, 1.0f}, 0, count);
        double powers[5] = {0, 0, 0, 0, 0};
        for (float value : values)
            for (int k = 1; k <= 4; ++k) powers[k] += std::pow(static_cast<double>(value), k) / n;
        // Five standard errors: the variance of z^k is 1, 2, 15 and 96.
        CHECK(std::abs(powers[1]) < 5 * std::sqrt(1 / n));
        CHECK(std::abs(powers[2] - 1) < 5 * std::sqrt(2 / n));
        CHECK(std::abs(powers[3]) < 5 * std::sqrt(15 / n));
        CHECK(std::abs(powers[4] - 3) < 5 * std::sqrt(96 / n));
        for (double bound : {-4.0, -3.0, -2.0, -1.0, -0.3, 0.0, 0.1, 0.7, 1.5, 2.5, 3.5, 4.2}) {
            const double below = std::erfc(-bound / std::numbers::sqrt2) / 2;
            const double found = static_cast<double>(
                std::count_if(values.begin(), values.end(), [&](float value) { return value < bound; }));
            INFO("below " << bound);
            CHECK(std::abs(found - n * below) < 5 * std::sqrt(n * below * (1 - below)) + 1);
        }
        // No neighbour, no other stream, no other seed says anything of a number.
        const std::vector<float> others[] = {
            drawn({seed, 2, 1.0f}, 1, count), drawn({seed, 2, 1.0f}, 2, count),
            drawn({seed, 2, 1.0f}, count, count), drawn({seed, 3, 1.0f}, 0, count),
            drawn({seed + 1, 2, 1.0f}, 0, count)};
        for (const std::vector<float>& other : others) {
            double product = 0, squares = 0;
            for (int64_t i = 0; i < count; ++i) {
                const double x = values[i], y = other[i];
                product += x * y;
                squares += (x * x - 1) * (y * y - 1) / 2;
            }
            CHECK(std::abs(product) < 5 * std::sqrt(n));
            CHECK(std::abs(squares) < 5 * std::sqrt(n));
        }
    }
}
