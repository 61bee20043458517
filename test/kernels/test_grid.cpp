// Pure functions of kernels/tensor.h and kernels/grid.h: number formats against exact oracles, grids against
// tables worked out by hand.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/grid.h"
#include "kernels/tensor.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;

namespace {

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The value of a finite float, from its fields: a processor that flushes denormals would convert them to
// zero.
double exact_value(uint32_t bits) {
    const int exponent = static_cast<int>(bits >> 23 & 0xff);
    const double fraction = bits & 0x7fffff;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -149) : std::ldexp(fraction + 0x800000, exponent - 150);
    return (bits >> 31) != 0 ? -magnitude : magnitude;
}

double float16_value(uint32_t bits) {  // finite and positive
    const int exponent = static_cast<int>(bits >> 10);
    const double fraction = bits & 0x3ff;
    return exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
}

// Levels, and where the choice between two neighbouring levels changes: a tie of round half to even.
struct HandTable {
    Grid grid;
    std::vector<float> levels;
    std::vector<float> thresholds;  // between levels[i] and levels[i + 1]
    std::vector<float> level_at_threshold;
    float clip_low, clip_high;
    float positive_levels, divisor;
    ScaleStatistic statistic;
};

const std::vector<HandTable>& hand_tables() {
    const ScaleStatistic mean = ScaleStatistic::mean_absolute, largest = ScaleStatistic::max_absolute;
    static const std::vector<HandTable> tables = {
        {Grid::binary, {-1, 1}, {0}, {1}, -1, 1, 1, 1, mean},
        {Grid::ternary, {-1, 0, 1}, {-0.5f, 0.5f}, {0, 0}, -1.485f, 1.485f, 1, 1.5f, largest},
        // round(r - 0.5) + 0.5 at r = -1, 0, 1: round of -1.5, -0.5, 0.5 = -2, 0, 0
        {Grid::quaternary,
         {-1.5f, -0.5f, 0.5f, 1.5f},
         {-1, 0, 1},
         {-1.5f, 0.5f, 0.5f},
         -1.98f,
         1.98f,
         1,
         2,
         largest},
        {Grid::integer3,
         {-4, -3, -2, -1, 0, 1, 2, 3},
         {-3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f},
         {-4, -2, -2, 0, 0, 2, 2},
         -4,
         3,
         3,
         3,
         largest},
    };
    return tables;
}

template <typename Check>
void with_traits(Grid grid, Check check) {
    with_grid(grid, [&]<Grid g>() {
        if constexpr (g != Grid::none) check(GridTraits<g>{});
    });
}

}  // namespace

// ---- bfloat16

TEST_CASE("every bfloat16 survives the way through float", "[bfloat16]") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        bfloat16 value;
        value.bits = static_cast<uint16_t>(bits);
        const bool is_nan = (bits & 0x7fff) > 0x7f80;
        wrong += bits_of(static_cast<float>(value)) != bits << 16;
        const uint16_t back = bfloat16(static_cast<float>(value)).bits;
        // A signalling NaN may become the quiet one.
        wrong += is_nan ? (back & 0x7fff) <= 0x7f80 : back != bits;
    }
    CHECK(wrong == 0);
}

TEST_CASE("bfloat16 rounds to nearest, ties to even", "[bfloat16]") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const uint32_t low = bits << 16;
        if ((low & 0x7f800000) == 0x7f800000) continue;
        // Around each bfloat16: itself, just above, just below the tie, the tie, just above it, just below
        // the next.
        for (uint32_t offset : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
            const uint32_t word = low | offset;
            const double expected = reference::round_to_bfloat16(exact_value(word));
            const uint32_t actual = static_cast<uint32_t>(bfloat16(float_of(word)).bits) << 16;
            if (std::isinf(expected))
                wrong += actual != (expected > 0 ? 0x7f800000u : 0xff800000u);
            else
                wrong += (actual & 0x7f800000) == 0x7f800000 || exact_value(actual) != expected ||
                         actual >> 31 != word >> 31;
        }
    }
    CHECK(wrong == 0);
    CHECK(bfloat16(1.00390625f).bits == 0x3f80);  // 1 + 2^-8: tie, down to even
    CHECK(bfloat16(1.01171875f).bits == 0x3f82);  // 1 + 3 * 2^-8: tie, up to even
    CHECK(bfloat16(1.00390637f).bits == 0x3f81);  // just above the tie
}

TEST_CASE("bfloat16 keeps NaN and infinity", "[bfloat16]") {
    for (uint32_t bits : {0x7f800001u, 0x7f80ffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
        INFO("NaN with bits " << bits);
        CHECK((bfloat16(float_of(bits)).bits & 0x7fff) > 0x7f80);
    }
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(bfloat16(infinity).bits == 0x7f80);
    CHECK(bfloat16(-infinity).bits == 0xff80);
    CHECK(bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);  // overflows like IEEE rounding
    CHECK(bfloat16(-0.0f).bits == 0x8000);
}

// ---- float16

TEST_CASE("round_to_float16 over all float16 values and the ties between them", "[round_to_float16]") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
        const double low = float16_value(bits), high = float16_value(bits + 1), tie = (low + high) / 2;
        const auto middle = static_cast<float>(tie);  // exact: one bit more than float16 has
        const double even = bits % 2 == 0 ? low : high;
        wrong += round_to_float16(static_cast<float>(low)) != low;
        wrong += round_to_float16(middle) != even;
        wrong += round_to_float16(std::nextafter(middle, 0.0f)) != low;
        wrong += round_to_float16(std::nextafter(middle, 1e9f)) != high;
        wrong += round_to_float16(std::nextafter(static_cast<float>(high), 0.0f)) != high;
    }
    CHECK(wrong == 0);
    CHECK(round_to_float16(65504.0f) == 65504.0f);
    CHECK(round_to_float16(65519.0f) == 65504.0f);
    CHECK(round_to_float16(1e30f) == 65504.0f);
    CHECK(round_to_float16(std::ldexp(1.0f, -26)) == 0.0f);
    CHECK(round_to_float16(std::ldexp(1.0f, -25)) == 0.0f);  // half of the smallest: a tie, to even
    CHECK(round_to_float16(std::ldexp(1.5f, -25)) == std::ldexp(1.0f, -24));
}

TEST_CASE("the oracles of both formats agree with the enumeration of float16", "[round_to_float16]") {
    test::Random random(3);
    int wrong = 0;
    for (int i = 0; i < 20000; ++i) {
        const auto value = static_cast<float>(std::exp2(50 * random.uniform() - 30));
        wrong += round_to_float16(value) != reference::round_to_float16(value);
    }
    CHECK(wrong == 0);
}

TEST_CASE("the effective scale is a float16 of at least the smallest scale", "[effective_scale]") {
    const float floor = std::ldexp(168.0f, -24);  // 1e-5 / 2^-24 = 167.77
    CHECK(effective_scale(0.0f) == floor);
    CHECK(effective_scale(-1.0f) == floor);
    CHECK(effective_scale(1e-5f) == floor);
    CHECK(effective_scale(0.1f) == 0.0999755859375f);  // 1638 * 2^-14
    CHECK(effective_scale(1e6f) == 65504.0f);
}

TEST_CASE("a NaN in a weight or a scale stays visible", "[effective_scale][grids]") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(effective_scale(nan)));
    // Arithmetic on GPUs makes 0x7fffffff.
    for (uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f800001u}) {
        float other;
        std::memcpy(&other, &bits, sizeof other);
        CHECK(std::isnan(effective_scale(other)));
    }
    for (Grid grid : reference::quantized_grids()) {
        INFO("grid " << reference::name_of(grid));
        with_traits(grid, [&](auto traits) {
            CHECK(std::isnan(traits.level(nan)));
            CHECK(std::isnan(traits.scale_gradient(nan)));
            CHECK_FALSE(traits.inside(nan));
        });
    }
}

// ---- grids

TEST_CASE("grids against tables worked out by hand", "[grids]") {
    for (const HandTable& table : hand_tables()) {
        INFO("grid " << reference::name_of(table.grid));
        with_traits(table.grid, [&](auto traits) {
            CHECK(traits.positive_levels == table.positive_levels);
            CHECK(traits.divisor == table.divisor);
            CHECK(traits.statistic == table.statistic);
            for (float level : table.levels) {
                INFO("level " << level);
                CHECK(traits.level(level) == level);
                // A level of the stretched grids is never clipped; the others contain their clip levels.
                CHECK(traits.inside(level));
            }
            for (size_t i = 0; i < table.thresholds.size(); ++i) {
                const float tie = table.thresholds[i], one = 1e-6f;
                INFO("threshold " << tie);
                CHECK(traits.level(tie) == table.level_at_threshold[i]);
                CHECK(traits.level(tie - one) == table.levels[i]);
                CHECK(traits.level(tie + one) == table.levels[i + 1]);
            }
            for (float huge : {10.0f, 1e4f, 1e30f}) {
                CHECK(traits.level(-huge) == table.levels.front());
                CHECK(traits.level(huge) == table.levels.back());
                CHECK_FALSE(traits.inside(-huge));
                CHECK_FALSE(traits.inside(huge));
                CHECK(traits.scale_gradient(-huge) == table.levels.front());
                CHECK(traits.scale_gradient(huge) == table.levels.back());
            }
            CHECK(traits.inside(table.clip_low * 0.999999f));
            CHECK(traits.inside(table.clip_high * 0.999999f));
            CHECK_FALSE(traits.inside(table.clip_low * 1.000001f));
            CHECK_FALSE(traits.inside(table.clip_high * 1.000001f));
        });
    }
}

TEST_CASE("integer grids of all widths", "[grids]") {
    const std::vector<std::pair<Grid, int>> widths = {{Grid::integer3, 3},
                                                      {Grid::integer4, 4},
                                                      {Grid::integer5, 5},
                                                      {Grid::integer6, 6},
                                                      {Grid::integer8, 8}};
    for (const auto& [grid, bits] : widths) {
        INFO("bits " << bits);
        const int lowest = -(1 << (bits - 1)), highest = (1 << (bits - 1)) - 1;
        with_traits(grid, [&, lowest, highest](auto traits) {
            CHECK(traits.positive_levels == static_cast<float>(highest));
            CHECK(traits.divisor == static_cast<float>(highest));
            CHECK(traits.statistic == ScaleStatistic::max_absolute);
            for (int k = lowest; k <= highest; ++k) {
                const auto level = static_cast<float>(k);
                CHECK(traits.level(level) == level);
                CHECK(traits.level(level + 0.25f) == level);
                CHECK(traits.level(level - 0.25f) == level);
                CHECK(traits.inside(level));
                CHECK(traits.scale_gradient(level) == 0.0f);
                if (k == highest) continue;
                CHECK(traits.level(level + 0.5f) == static_cast<float>(k % 2 == 0 ? k : k + 1));
                CHECK(traits.scale_gradient(level + 0.25f) == -0.25f);
            }
            CHECK_FALSE(traits.inside(static_cast<float>(highest) + 0.25f));
            CHECK_FALSE(traits.inside(static_cast<float>(lowest) - 0.25f));
            CHECK(traits.scale_gradient(static_cast<float>(highest) + 0.25f) == static_cast<float>(highest));
            CHECK(traits.scale_gradient(static_cast<float>(lowest) - 0.25f) == static_cast<float>(lowest));
        });
    }
}

TEST_CASE("binary: sign with sign(0) = +1, and its own scale gradient", "[grids]") {
    using Binary = GridTraits<Grid::binary>;
    CHECK(Binary::level(0.0f) == 1.0f);
    CHECK(Binary::level(-0.0f) == 1.0f);
    CHECK(Binary::level(-1e-30f) == -1.0f);
    CHECK(Binary::scale_gradient(0.3f) == 1.0f);
    CHECK(Binary::scale_gradient(-0.3f) == -1.0f);
    CHECK(Binary::inside(-1.0f));
    CHECK(Binary::inside(1.0f));
    CHECK_FALSE(Binary::inside(1.0001f));
}

TEST_CASE("grids equal the second formulation of the oracle on random ratios", "[grids]") {
    test::Random random(11);
    for (Grid grid : reference::quantized_grids()) {
        const reference::GridTable table = reference::table_of(grid);
        int wrong = 0;
        for (int i = 0; i < 20000; ++i) {
            const auto r = static_cast<float>(1.2 * table.levels.back() * random.normal());
            with_traits(grid, [&](auto traits) {
                wrong += traits.level(r) != reference::level(grid, r);
                wrong += traits.inside(r) != reference::inside(grid, r);
                wrong += std::abs(traits.scale_gradient(r) - reference::scale_gradient(grid, r)) > 1e-6;
            });
            // Nearest of all levels, by trying all of them (no ties among random numbers).
            double nearest = table.levels[0];
            for (double level : table.levels)
                if (std::abs(level - r) < std::abs(nearest - r)) nearest = level;
            wrong += nearest != reference::level(grid, r);
        }
        INFO("grid " << reference::name_of(grid));
        CHECK(wrong == 0);
    }
}

TEST_CASE("levels are exact in bfloat16, also in int8 when doubled", "[grids]") {
    for (Grid grid : reference::quantized_grids()) {
        for (double level : reference::table_of(grid).levels) {
            CHECK(reference::round_to_bfloat16(level) == level);
            CHECK(std::floor(2 * level) == 2 * level);
        }
    }
}

// ---- straight-through gradients

// The straight-through estimator is not the derivative of ŵ(w, s) = s * level(w/s): that is a staircase in w,
// whose derivative with respect to w is zero wherever it exists, and with respect to s is level(w/s). The
// estimator is the derivative of a surrogate, in which rounding is the addition of the rounding error that it
// makes at this very point:
//     ŵ = s * (clamp(w/s) + c),  c = level(w0/s0) - clamp(w0/s0) held constant.
TEST_CASE("straight-through gradients are the derivative of the surrogate, not of the staircase", "[grids]") {
    test::Random random(5);
    for (Grid grid : reference::quantized_grids()) {
        if (grid == Grid::binary) continue;
        INFO("grid " << reference::name_of(grid));
        const reference::GridTable table = reference::table_of(grid);
        const auto clamp = [&](double r) { return std::min(std::max(r, table.clip_low), table.clip_high); };
        int staircase_differs = 0;
        for (int i = 0; i < 200; ++i) {
            const double w = static_cast<float>(0.8 * table.levels.back() * random.normal());
            const double s = static_cast<float>(0.5 + random.uniform()), h = 1e-6;
            const auto r = static_cast<float>(w / s);
            const bool near_clip =
                std::abs(std::abs(r) - table.clip_high) < 1e-4 || std::abs(r - table.clip_low) < 1e-4;
            if (near_clip) continue;
            // Outside the clipping range the estimator takes the clip level of the grid as the constant
            // value.
            const double q = reference::level(grid, r), c = q - clamp(w / s);
            const auto surrogate = [&](double w_, double s_) { return s_ * (clamp(w_ / s_) + c); };
            const double by_weight = (surrogate(w + h, s) - surrogate(w - h, s)) / (2 * h);
            const double by_scale = (surrogate(w, s + h) - surrogate(w, s - h)) / (2 * h);
            CHECK(std::abs(by_weight - (reference::inside(grid, r) ? 1 : 0)) < 1e-6);
            CHECK(std::abs(by_scale - reference::scale_gradient(grid, r)) < 1e-5);
            const double true_by_scale = ((s + h) * reference::level(grid, static_cast<float>(w / (s + h))) -
                                          (s - h) * reference::level(grid, static_cast<float>(w / (s - h)))) /
                                         (2 * h);
            staircase_differs += std::abs(true_by_scale - reference::scale_gradient(grid, r)) > 1e-3;
        }
        CHECK(staircase_differs > 50);
    }
}

// With sign() nothing is rounded relative to w/s: here the scale gradient is the true derivative of s *
// sign(w), while the gradient of w is that of the surrogate s * clamp(w/s, -1, 1).
TEST_CASE("binary straight-through gradients", "[grids]") {
    test::Random random(6);
    for (int i = 0; i < 200; ++i) {
        const double w = random.normal(), s = 0.5 + random.uniform(), h = 1e-6;
        const auto r = static_cast<float>(w / s);
        if (std::abs(std::abs(r) - 1) < 1e-4 || std::abs(r) < 1e-4) continue;
        const auto clipped = [&](double w_) { return s * std::min(std::max(w_ / s, -1.0), 1.0); };
        CHECK(std::abs((clipped(w + h) - clipped(w - h)) / (2 * h) -
                       (reference::inside(Grid::binary, r) ? 1 : 0)) < 1e-6);
        CHECK(reference::scale_gradient(Grid::binary, r) == (w < 0 ? -1 : 1));
    }
}
