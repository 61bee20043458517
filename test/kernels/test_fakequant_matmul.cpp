// The fused matmuls with quantized weights on the emulated device: all grids, sources, granularities, forms
// and tile sizes. Levels are exact, so only sums and the final rounding may differ from double precision.
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/codes.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "test/kernels/cuda/matmul_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;
using CU_BACKEND::FakeQuantWeight;
using CU_BACKEND::TileSize;
using CU_BACKEND::WeightSource;

namespace {

// ---- weights

constexpr WeightSource quantized_sources[] = {WeightSource::master_float32, WeightSource::master_bfloat16,
                                              WeightSource::codes};
const char* name_of(WeightSource source) {
    switch (source) {
        case WeightSource::bfloat16:
            return "bfloat16";
        case WeightSource::master_float32:
            return "float32 master";
        case WeightSource::master_bfloat16:
            return "bfloat16 master";
        case WeightSource::codes:
            return "codes";
    }
    return "";
}

// A weight on the host whose master is bfloat16 numbers, so that all sources mean the same.
HostParameter random_weight(Random& random, int64_t N, int64_t K, Grid grid, int64_t group) {
    HostParameter host = random_parameter(random, N, K, grid, group);
    host.master = reference::rounded(DType::bfloat16, host.master);
    return host;
}

// Four numbers to a float32 of device memory, which any bytes fit into.
Tensor place_bytes(Bench& bench, std::vector<unsigned char> bytes) {
    bytes.resize((bytes.size() + 3) / 4 * 4);
    Tensor memory = bench.update("bytes", Array(bytes.size() / 4, 0.0), DType::float32,
                                 {static_cast<int64_t>(bytes.size()) / 4});
    bench.backend().copy_to_device(memory.data, bytes.data(), static_cast<int64_t>(bytes.size()));
    return memory;
}

std::vector<unsigned char> packed(const HostParameter& host) {
    const int bits = code_bits(host.grid);
    const int64_t row_bytes = code_row_bytes(host.columns, bits);
    std::vector<unsigned char> codes(host.rows * row_bytes, 0);
    for (int64_t n = 0; n < host.rows; ++n)
        for (int64_t k = 0; k < host.columns; ++k) {
            const int64_t i = n * host.columns + k;
            const double scale = reference::effective_scale(host.scale[i / host.group]);
            const double level = reference::level(host.grid, reference::ratio(host.master[i], scale));
            const auto code =
                static_cast<unsigned>((level - lowest_level(host.grid)) / level_step(host.grid));
            codes[n * row_bytes + k * bits / 8] |= static_cast<unsigned char>(code << (k * bits % 8));
        }
    return codes;
}

FakeQuantWeight place_source(Bench& bench, const HostParameter& host, WeightSource source) {
    FakeQuantWeight weight;
    weight.rows = host.rows;
    weight.columns = host.columns;
    weight.source = source;
    weight.grid = host.grid;
    weight.group = host.group;
    const bool codes = source == WeightSource::codes;
    if (codes)
        weight.data = place_bytes(bench, packed(host)).data;
    else if (source == WeightSource::bfloat16)
        weight.data =
            bench.input("q", host.quantized(DType::bfloat16).q, DType::bfloat16, {host.rows, host.columns})
                .data;
    else
        weight.data = bench
                          .input("master", host.master,
                                 source == WeightSource::master_float32 ? DType::float32 : DType::bfloat16,
                                 {host.rows, host.columns})
                          .data;
    Array scales = host.scale;
    if (codes)
        for (double& scale : scales) scale = reference::effective_scale(scale);
    if (!codes || !host.one_scale_per_row())
        weight.scales = bench.input("scales", scales, DType::float32, {host.scales()}).as<float>();
    return weight;
}

// ---- products

struct Shape {
    int64_t M, N, K;
};
std::string text(const Shape& s) {
    return "M " + std::to_string(s.M) + " N " + std::to_string(s.N) + " K " + std::to_string(s.K);
}

// "" or what is wrong with z = x qᵀ.
std::string check_forward(const HostParameter& host, const Shape& s, WeightSource source, DType z_type,
                          bool scale_columns, TileSize size) {
    Random random(1);
    Bench bench(emulated_device());
    const FakeQuantWeight weight = place_source(bench, host, source);
    const Array x = random.normals(s.M * s.K, DType::bfloat16);
    const Array column_scale = scale_columns ? random.scales(s.N) : Array();
    const Tensor z = bench.output("z", z_type, {s.M, s.N});
    const Tensor scale = bench.optional_input("column scale", column_scale, DType::float32, {s.N});
    fakequant_matmul_forward(emulated_stream(), z, bench.input("x", x, DType::bfloat16, {s.M, s.K}), weight,
                             scale.as<float>(), size);
    const Array q = host.quantized(DType::bfloat16).q;
    reference::Result expected = reference::matmul_forward(x, {q, {}}, s.M, s.N, s.K);
    expected.value = reference::scale_columns(expected.value, column_scale);
    expected.magnitude = reference::scale_columns(expected.magnitude, column_scale);
    return difference(bench.read(z), expected, z_type, float32_sum(s.K)) + bench.damage();
}

// "" or what is wrong with dx = dz q.
std::string check_input_gradient(const HostParameter& host, const Shape& s, WeightSource source,
                                 TileSize size) {
    Random random(2);
    Bench bench(emulated_device());
    const FakeQuantWeight weight = place_source(bench, host, source);
    const Array dz = random.normals(s.M * s.N, DType::bfloat16, 1e-3);
    const Tensor dx = bench.output("dx", DType::bfloat16, {s.M, s.K});
    fakequant_matmul_input_gradient(emulated_stream(), dx, bench.input("dz", dz, DType::bfloat16, {s.M, s.N}),
                                    weight, size);
    const Array q = host.quantized(DType::bfloat16).q;
    const std::string wrong =
        difference(bench.read(dx), reference::matmul_input_gradient(dz, q, s.M, s.N, s.K), DType::bfloat16,
                   float32_sum(s.N));
    return wrong + bench.damage();
}

}  // namespace

TEST_CASE("fused matmuls know every grid, source and granularity", "[fakequant_matmul][cuda]") {
    const Shape s{21, 40, 128};
    int turn = 0;
    for (Grid grid : reference::quantized_grids())
        for (int64_t group : {128, 64, 32}) {
            Random random(3);
            const HostParameter host = random_weight(random, s.N, s.K, grid, group);
            for (WeightSource source : quantized_sources) {
                INFO(reference::name_of(grid) << " group " << group << " from " << name_of(source));
                ++turn;
                CHECK(check_forward(host, s, source, turn % 2 ? DType::float32 : DType::bfloat16,
                                    turn % 3 == 0, TileSize::automatic) == "");
                CHECK(check_input_gradient(host, s, source, TileSize::automatic) == "");
            }
        }
}

TEST_CASE("groups of 128 are fewer than the row", "[fakequant_matmul][cuda]") {
    const Shape s{9, 24, 384};
    for (Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8}) {
        Random random(4);
        const HostParameter host = random_weight(random, s.N, s.K, grid, 128);
        for (WeightSource source : quantized_sources) {
            INFO(reference::name_of(grid) << " from " << name_of(source));
            CHECK(check_forward(host, s, source, DType::float32, true, TileSize::automatic) == "");
            CHECK(check_input_gradient(host, s, source, TileSize::automatic) == "");
        }
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
            for (WeightSource source : quantized_sources) {
                INFO(text(s) << ", " << reference::name_of(grid) << " from " << name_of(source));
                ++turn;
                CHECK(check_forward(host, s, source, turn % 2 ? DType::float32 : DType::bfloat16,
                                    turn % 3 == 0, TileSize::automatic) == "");
                CHECK(check_input_gradient(host, s, source, TileSize::automatic) == "");
            }
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
                for (WeightSource source : quantized_sources) {
                    INFO(text(s) << ", " << reference::name_of(grid) << " group " << group << " from "
                                 << name_of(source));
                    CHECK(check_forward(host, s, source, DType::bfloat16, false, TileSize::large) == "");
                    CHECK(check_input_gradient(host, s, source, TileSize::large) == "");
                }
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
        for (WeightSource source : quantized_sources) {
            INFO(reference::name_of(grid) << " from " << name_of(source));
            Bench bench(emulated_device());
            const Tensor z = bench.output("z", DType::float32, {s.M, s.N});
            fakequant_matmul_forward(emulated_stream(), z, bench.input("x", x, DType::bfloat16, {s.M, s.K}),
                                     place_source(bench, host, source), nullptr);
            CHECK(inequality(bench.read(z), reference::matmul_forward(x, {q, {}}, s.M, s.N, s.K).value) ==
                  "");
        }
    }
}

TEST_CASE("plain bfloat16 weights are a source too", "[fakequant_matmul][cuda]") {
    for (const Shape& s : {Shape{40, 24, 64}, Shape{19, 23, 37}}) {
        INFO(text(s));
        Random random(9);
        const HostParameter host = random_weight(random, s.N, s.K, Grid::integer4, s.K);
        CHECK(check_forward(host, s, WeightSource::bfloat16, DType::bfloat16, true, TileSize::automatic) ==
              "");
        CHECK(check_input_gradient(host, s, WeightSource::bfloat16, TileSize::automatic) == "");
    }
}

TEST_CASE("a NaN scale of a group shows in what its row takes part in", "[fakequant_matmul][cuda]") {
    const Shape s{5, 16, 128};
    for (Grid grid : {Grid::binary, Grid::integer4}) {
        Random random(10);
        HostParameter host = random_weight(random, s.N, s.K, grid, 32);
        Bench bench(emulated_device());
        FakeQuantWeight weight = place_source(bench, host, WeightSource::codes);
        Array scales = host.scale;
        scales[3 * 4 + 2] = std::nan("");
        weight.scales = bench.input("NaN scales", scales, DType::float32, {host.scales()}).as<float>();
        const Tensor z = bench.output("z", DType::bfloat16, {s.M, s.N}),
                     dx = bench.output("dx", DType::bfloat16, {s.M, s.K});
        const Array x = random.normals(s.M * s.K, DType::bfloat16),
                    dz = random.normals(s.M * s.N, DType::bfloat16);
        fakequant_matmul_forward(emulated_stream(), z, bench.input("x", x, DType::bfloat16, {s.M, s.K}),
                                 weight, nullptr);
        fakequant_matmul_input_gradient(emulated_stream(), dx,
                                        bench.input("dz", dz, DType::bfloat16, {s.M, s.N}), weight);
        const Array z_out = bench.read(z), dx_out = bench.read(dx);
        for (int64_t i = 0; i < s.M * s.N; ++i) REQUIRE(std::isnan(z_out[i]) == (i % s.N == 3));
        for (int64_t i = 0; i < s.M * s.K; ++i) REQUIRE(std::isnan(dx_out[i]) == (i % s.K / 32 == 2));
    }
}

// ---- errors

TEST_CASE("fused matmuls check their arguments", "[fakequant_matmul][cuda]") {
    const Shape s{4, 8, 64};
    Random random(12);
    Bench bench(emulated_device());
    const HostParameter host = random_weight(random, s.N, s.K, Grid::integer4, 32);
    const FakeQuantWeight good = place_source(bench, host, WeightSource::codes);
    const Tensor x =
        bench.input("x", random.normals(s.M * s.K, DType::bfloat16), DType::bfloat16, {s.M, s.K});
    const Tensor dz =
        bench.input("dz", random.normals(s.M * s.N, DType::bfloat16), DType::bfloat16, {s.M, s.N});
    const Tensor z = bench.output("z", DType::bfloat16, {s.M, s.N}),
                 dx = bench.output("dx", DType::bfloat16, {s.M, s.K});
    const std::vector<std::function<void(FakeQuantWeight&)>> mistakes = {
        [](FakeQuantWeight& w) { w.data = nullptr; },
        [](FakeQuantWeight& w) { w.scales = nullptr; },
        [](FakeQuantWeight& w) { w.group = 24; },
        [](FakeQuantWeight& w) { w.group = 4; },
        [](FakeQuantWeight& w) { w.grid = Grid::none; },
        [](FakeQuantWeight& w) { w.rows -= 1; },
        [](FakeQuantWeight& w) { w.data = static_cast<const char*>(w.data) + 4; }};
    for (const auto& mistake : mistakes) {
        FakeQuantWeight weight = good;
        mistake(weight);
        CHECK(contract_violation("fakequant_matmul_forward", [&] {
                  fakequant_matmul_forward(emulated_stream(), z, x, weight, nullptr);
              }) == "");
        CHECK(contract_violation("fakequant_matmul_input_gradient", [&] {
                  fakequant_matmul_input_gradient(emulated_stream(), dx, dz, weight);
              }) == "");
    }
    CHECK(contract_violations("fakequant_matmul_input_gradient", {dx, dz}, {}, {},
                              [&](const std::vector<Tensor>& t) {
                                  fakequant_matmul_input_gradient(emulated_stream(), t[0], t[1], good);
                              }) == "");
}

// ---- what the kernels ask of the machine

TEST_CASE("fused matmuls have no races, in any order of threads", "[fakequant_matmul][cuda]") {
    const Shape s{72, 40, 136}, odd{33, 21, 67};
    Random random(13);
    const HostParameter aligned = random_weight(random, s.N, s.K, Grid::integer4, s.K);
    const HostParameter unaligned = random_weight(random, odd.N, odd.K, Grid::integer4, odd.K);
    in_several_orders([&] {
        for (WeightSource source : quantized_sources) {
            INFO("from " << name_of(source));
            for (TileSize size : {TileSize::small, TileSize::large}) {
                CHECK(check_forward(aligned, s, source, DType::bfloat16, false, size) == "");
                CHECK(check_input_gradient(aligned, s, source, size) == "");
            }
            CHECK(check_forward(unaligned, odd, source, DType::bfloat16, false, TileSize::automatic) == "");
            CHECK(check_input_gradient(unaligned, odd, source, TileSize::automatic) == "");
        }
    });
}

// Each block reads its codes once. Where a step of the main loop takes less than a sector of a row - 32 codes
// of 4 bits - the next step finds the rest in the cache next to the multiprocessor.
TEST_CASE("fused matmuls load each code once, without bank conflicts", "[cuda][fakequant_matmul][lint]") {
    const int64_t M = 256, N = 128, K = 128;
    for (Grid grid : {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8})
        for (int64_t group : {K, int64_t{32}})
            for (WeightSource source : quantized_sources)
                for (const Tile& tile : matmul_tiles) {
                    INFO(reference::name_of(grid)
                         << " from " << name_of(source) << ", group " << group << ", tiles of " << tile.rows);
                    Random random(15);
                    Bench bench(emulated_device());
                    const HostParameter host = random_weight(random, N, K, grid, group);
                    const FakeQuantWeight weight = place_source(bench, host, source);
                    const Tensor x =
                        bench.input("x", random.normals(M * K, DType::bfloat16), DType::bfloat16, {M, K});
                    const Tensor dz =
                        bench.input("dz", random.normals(M * N, DType::bfloat16), DType::bfloat16, {M, N});
                    const Tensor z = bench.output("z", DType::bfloat16, {M, N}),
                                 dx = bench.output("dx", DType::bfloat16, {M, K});
                    const int64_t weight_bytes = source == WeightSource::codes ? N * K * code_bits(grid) / 8
                                                 : source == WeightSource::master_float32 ? N * K * 4
                                                                                          : N * K * 2;
                    // Of scales: each of the eight weights that a thread takes at once.
                    const int64_t scale_bytes = weight.scales == nullptr ? 0 : N * K / 8 * 4;
                    const int64_t expected =
                        x.bytes() * (N / tile.columns) + (weight_bytes + scale_bytes) * (M / tile.rows);
                    const emulator::LaunchReport forward = lint_matmul({M, N, K}, tile, [&] {
                        fakequant_matmul_forward(emulated_stream(), z, x, weight, nullptr, tile.size);
                    });
                    CHECK(forward.bytes_loaded == expected);
                    const emulator::LaunchReport backward = lint_matmul({M, K, N}, tile, [&] {
                        fakequant_matmul_input_gradient(emulated_stream(), dx, dz, weight, tile.size);
                    });
                    CHECK(backward.bytes_loaded == expected);
                    const bool whole_sectors =
                        source != WeightSource::codes || code_bits(grid) * tile.columns % 256 == 0;
                    if (weight.scales == nullptr && whole_sectors)
                        CHECK(backward.load_sectors == backward.ideal_load_sectors);
                    if (weight.scales == nullptr && code_bits(grid) == 8)
                        CHECK(forward.load_sectors == forward.ideal_load_sectors);
                }
}
