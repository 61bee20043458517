// The fused matmuls with packed codes on the emulated device: all grids, granularities, forms and tile sizes. Levels are
// exact, so only sums and the final rounding may differ from double precision. Hopper's kernels, where they take the shape,
// are checked along; test_hopper_fakequant_matmul.cpp has what is theirs alone.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/codes.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "kernels/cuda/weights/weight_layout.h"
#include "test/kernels/cuda/codes_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;
using CU_BACKEND::fakequant_matmul_forward;
using CU_BACKEND::fakequant_matmul_input_gradient;
using CU_BACKEND::TileSize;

TEST_CASE("fused matmuls know every grid and granularity", "[fakequant_matmul][cuda]") {
    const Shape s{21, 40, 128};
    int turn = 0;
    for (Grid grid : reference::quantized_grids())
        for (int64_t group : {128, 64, 32}) {
            Random random(3);
            const HostParameter host = random_weight(random, s.N, s.K, grid, group);
            INFO(reference::name_of(grid) << " group " << group);
            CHECK(check_forward(host, s, ++turn % 2 ? DType::float32 : DType::bfloat16,
                                TileSize::automatic) == "");
            CHECK(check_input_gradient(host, s, TileSize::automatic) == "");
        }
}

TEST_CASE("groups of 128 are fewer than the row", "[fakequant_matmul][cuda]") {
    const Shape s{9, 24, 384};
    for (Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8}) {
        Random random(4);
        const HostParameter host = random_weight(random, s.N, s.K, grid, 128);
        INFO(reference::name_of(grid));
        CHECK(check_forward(host, s, DType::float32, TileSize::automatic) == "");
        CHECK(check_input_gradient(host, s, TileSize::automatic) == "");
    }
}

TEST_CASE("fused matmuls take any shape", "[fakequant_matmul][cuda]") {
    std::vector<Shape> shapes = {{1, 1, 1},     {1, 8, 8},     {3, 5, 7},     {2, 130, 16},
                                 {33, 64, 31},  {64, 33, 104}, {129, 65, 9},  {17, 96, 130},
                                 {140, 72, 40}, {5, 7, 264},   {131, 129, 65}};
    Random sizes(5);
    for (int i = 0; i < 4; ++i)
        shapes.push_back({sizes.integer(1, 200), sizes.integer(1, 200), sizes.integer(1, 200)});
    shapes = affordable(shapes, 300000, [](const Shape& s) { return s.M * s.N * s.K; });
    int turn = 0;
    for (const Shape& s : shapes)
        for (Grid grid : {Grid::binary, Grid::ternary, Grid::integer3, Grid::integer8}) {
            Random random(6);
            const HostParameter host = random_weight(random, s.N, s.K, grid, s.K);
            INFO(text(s) << ", " << reference::name_of(grid));
            CHECK(check_forward(host, s, ++turn % 2 ? DType::float32 : DType::bfloat16,
                                TileSize::automatic) == "");
            CHECK(check_input_gradient(host, s, TileSize::automatic) == "");
        }
}

TEST_CASE("large tiles compute the same", "[fakequant_matmul][cuda]") {
    std::vector<Shape> shapes = {{300, 136, 72}, {257, 8, 320}, {8, 264, 96}, {64, 24, 8}};
    shapes = affordable(shapes, 100000, [](const Shape& s) { return s.M * s.N * s.K; });
    for (const Shape& s : shapes)
        for (Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer6})
            for (int64_t group : {s.K, int64_t{32}}) {
                if (s.K % group != 0) continue;
                Random random(7);
                const HostParameter host = random_weight(random, s.N, s.K, grid, group);
                INFO(text(s) << ", " << reference::name_of(grid) << " group " << group);
                CHECK(check_forward(host, s, DType::bfloat16, TileSize::large) == "");
                CHECK(check_input_gradient(host, s, TileSize::large) == "");
            }
}

// x of small integers: every sum is exact, whatever its order, and so must be the result.
TEST_CASE("levels reach the tensor cores exactly", "[fakequant_matmul][cuda]") {
    const Shape s{16, 24, 64};
    for (Grid grid : reference::quantized_grids()) {
        Random random(8);
        const HostParameter host = random_weight(random, s.N, s.K, grid, s.K);
        Array x(s.M * s.K);
        for (double& value : x) value = static_cast<double>(random.integer(-8, 8));
        const Array q = host.quantized(DType::bfloat16).q;
        INFO(reference::name_of(grid));
        Bench bench(emulated_device());
        const Tensor z = bench.output("z", DType::float32, {s.M, s.N});
        fakequant_matmul_forward(emulated_stream(), z, bench.input("x", x, DType::bfloat16, {s.M, s.K}),
                                 place_codes(bench, host));
        CHECK(inequality(bench.read(z), reference::matmul_forward(x, {q, {}}, s.M, s.N, s.K).value) == "");
    }
}

TEST_CASE("a NaN scale of a group shows in what its row takes part in", "[fakequant_matmul][cuda]") {
    const Shape s{5, 16, 128};
    for (Grid grid : {Grid::binary, Grid::integer4}) {
        Random random(10);
        const HostParameter host = random_weight(random, s.N, s.K, grid, 32);
        Bench bench(emulated_device());
        const ComputeWeight weight = place_codes(bench, host);
        const float nan = std::nanf("");
        bench.backend().copy_to_device(CU_BACKEND::layout_of(weight).group_scale + 3 * 4 + 2, &nan,
                                       sizeof nan);
        const Tensor z = bench.output("z", DType::bfloat16, {s.M, s.N}),
                     dx = bench.output("dx", DType::bfloat16, {s.M, s.K});
        const Array x = random.normals(s.M * s.K, DType::bfloat16),
                    dz = random.normals(s.M * s.N, DType::bfloat16);
        fakequant_matmul_forward(emulated_stream(), z, bench.input("x", x, DType::bfloat16, {s.M, s.K}),
                                 weight);
        fakequant_matmul_input_gradient(emulated_stream(), dx,
                                        bench.input("dz", dz, DType::bfloat16, {s.M, s.N}), weight);
        const Array z_out = bench.read(z), dx_out = bench.read(dx);
        for (int64_t i = 0; i < s.M * s.N; ++i) REQUIRE(std::isnan(z_out[i]) == (i % s.N == 3));
        for (int64_t i = 0; i < s.M * s.K; ++i) REQUIRE(std::isnan(dx_out[i]) == (i % s.K / 32 == 2));
    }
}

// ---- what the kernels ask of the machine

TEST_CASE("fused matmuls have no races, in any order of threads", "[fakequant_matmul][cuda]") {
    const Shape s{72, 40, 136}, odd{33, 21, 67};
    Random random(13);
    const HostParameter aligned = random_weight(random, s.N, s.K, Grid::integer4, s.K);
    const HostParameter unaligned = random_weight(random, odd.N, odd.K, Grid::integer4, odd.K);
    in_several_orders([&] {
        for (TileSize size : {TileSize::small, TileSize::large}) {
            CHECK(check_forward(aligned, s, DType::bfloat16, size) == "");
            CHECK(check_input_gradient(aligned, s, size) == "");
        }
        CHECK(check_forward(unaligned, odd, DType::bfloat16, TileSize::automatic) == "");
        CHECK(check_input_gradient(unaligned, odd, TileSize::automatic) == "");
    });
}

// Each block reads its codes once. Where a step of the main loop takes less than a sector of a row - 32 codes
// of 4 bits - the next step finds the rest in the cache next to the multiprocessor.
TEST_CASE("fused matmuls load each code once, without bank conflicts", "[cuda][fakequant_matmul][lint]") {
    const int64_t M = 256, N = 128, K = 128;
    for (Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8})
        for (int64_t group : {K, int64_t{32}})
            for (const Tile& tile : matmul_tiles) {
                INFO(reference::name_of(grid) << ", group " << group << ", tiles of " << tile.rows);
                Random random(15);
                Bench bench(emulated_device());
                const ComputeWeight weight = place_codes(bench, random_weight(random, N, K, grid, group));
                const Tensor x =
                    bench.input("x", random.normals(M * K, DType::bfloat16), DType::bfloat16, {M, K});
                const Tensor dz =
                    bench.input("dz", random.normals(M * N, DType::bfloat16), DType::bfloat16, {M, N});
                const Tensor z = bench.output("z", DType::bfloat16, {M, N}),
                             dx = bench.output("dx", DType::bfloat16, {M, K});
                // Of scales: each of the eight weights that a thread takes at once.
                const int64_t scale_bytes = group == K ? 0 : N * K / 8 * 4;
                const int64_t expected = x.bytes() * (N / tile.columns) +
                                         (N * K * code_bits(grid) / 8 + scale_bytes) * (M / tile.rows);
                const emulator::LaunchReport forward = lint_matmul({M, N, K}, tile, [&] {
                    fakequant_matmul_forward(emulated_stream(), z, x, weight, tile.size);
                });
                CHECK(forward.bytes_loaded == expected);
                const emulator::LaunchReport backward = lint_matmul({M, K, N}, tile, [&] {
                    fakequant_matmul_input_gradient(emulated_stream(), dx, dz, weight, tile.size);
                });
                CHECK(backward.bytes_loaded == expected);
                const bool whole_sectors = code_bits(grid) * tile.columns % 256 == 0;
                if (group == K && whole_sectors) CHECK(backward.load_sectors == backward.ideal_load_sectors);
                if (group == K && code_bits(grid) == 8)
                    CHECK(forward.load_sectors == forward.ideal_load_sectors);
            }
}
