// Packed codes on the host: each level has a code and comes back from it, and rows are as long as they say.
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "kernels/codes.h"
#include "test/support/catch.h"
#include "test/support/reference.h"

using namespace train_qat;

namespace {

template <typename Check>
void with_each_grid(Check check) {
    for (Grid grid : reference::quantized_grids())
        with_grid(grid, [&]<Grid g>() {
            INFO("grid " << reference::name_of(g));
            if constexpr (g != Grid::none) check.template operator()<g>();
        });
}

}  // namespace

TEST_CASE("every level of every grid has a code and comes back from it", "[codes]") {
    with_each_grid([]<Grid grid>() {
        const reference::GridTable table = reference::table_of(grid);
        REQUIRE(table.levels.size() <= size_t{1} << code_bits(grid));
        REQUIRE(table.levels.front() == lowest_level(grid));
        // Codes count upwards from the lowest level.
        for (size_t i = 0; i < table.levels.size(); ++i) {
            const auto level = static_cast<float>(table.levels[i]);
            INFO("level " << level);
            CHECK(code_of_level<grid>(level) == i);
            CHECK(level_of_code<grid>(static_cast<uint32_t>(i)) == level);
        }
    });
}

TEST_CASE("every level that a weight can take has a code", "[codes]") {
    with_each_grid([]<Grid grid>() {
        const float infinity = std::numeric_limits<float>::infinity();
        std::vector<float> ratios = {0.0f, -0.0f, infinity, -infinity};
        for (int i = -20000; i <= 20000; ++i) ratios.push_back(static_cast<float>(i) / 128);
        int wrong = 0;
        for (float ratio : ratios) {
            const float level = GridTraits<grid>::level(ratio);
            const uint32_t code = code_of_level<grid>(level);
            wrong += code > code_mask(grid) || level_of_code<grid>(code) != level;
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE("what has no code becomes one all the same", "[codes]") {
    with_each_grid([]<Grid grid>() {
        CHECK(code_of_level<grid>(std::numeric_limits<float>::quiet_NaN()) == 0);
        CHECK(code_of_level<grid>(lowest_level(grid) - 5) == 0);
    });
}

TEST_CASE("codes take the power of two of bits that holds their levels", "[codes]") {
    const std::vector<std::pair<Grid, int>> expected = {
        {Grid::none, 0},       {Grid::binary, 1},   {Grid::ternary, 2},
        {Grid::quaternary, 2}, {Grid::integer3, 4}, {Grid::integer4, 4},
        {Grid::integer5, 8},   {Grid::integer6, 8}, {Grid::integer8, 8}};
    for (const auto& [grid, bits] : expected) {
        CHECK(code_bits(grid) == bits);
        CHECK(code_mask(grid) == (1u << bits) - 1);
    }
}

TEST_CASE("rows of codes are padded to 16 bytes", "[codes]") {
    for (int bits : {1, 2, 4, 8})
        for (int64_t columns = 1; columns <= 600; ++columns) {
            const int64_t bytes = code_row_bytes(columns, bits);
            INFO(columns << " columns of " << bits << " bits: " << bytes << " bytes");
            REQUIRE(bytes % 16 == 0);
            REQUIRE(bytes * 8 >= columns * bits);
            REQUIRE((bytes - 16) * 8 < columns * bits);
        }
    CHECK(code_row_bytes(int64_t{1} << 33, 8) == int64_t{1} << 33);
    CHECK(code_scales_offset(3, 130, Grid::binary) == 3 * 32);
    CHECK(code_scales_offset(5, 33, Grid::integer4) == 5 * 32);
    CHECK(code_scales_offset(7, 64, Grid::integer8) == 7 * 64);
}
