// Initial scales, levels in the matmuls' copy of the weights, and the straight-through backward pass.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Case {
    int64_t rows, columns, group;
};

// One scale per row (group = columns), groups, single rows and columns, sizes that are multiples of nothing.
std::vector<Case> cases(uint64_t seed) {
    Random random(seed);
    std::vector<Case> result = {{1, 1, 1},   {1, 7, 7},    {3, 1, 1},     {7, 3, 3},      {5, 64, 32},
                                {9, 64, 64}, {2, 256, 64}, {33, 128, 32}, {65, 256, 128}, {70, 384, 128}};
    const int64_t odd = 2 * random.integer(8, 90) + 1;
    result.push_back({random.integer(2, 150), odd, odd});
    const int64_t group = random.pick<int64_t>({3, 32, 48});
    result.push_back({random.integer(2, 60), group * random.integer(2, 5), group});
    return affordable(result, 9000, [](const Case& s) { return s.rows * s.columns; });
}

std::string text(Grid grid, const Case& c) {
    return std::string(reference::name_of(grid)) + " " + std::to_string(c.rows) + " x " +
           std::to_string(c.columns) + " group " + std::to_string(c.group);
}

// What matmul_forward with an identity must reveal, bit by bit: the product s * q in float32, or s * level
// rounded to the compute type where several scales of a row cannot leave the sum.
Array expected_weights(const HostParameter& host, DType compute_type) {
    const reference::QuantizedMatrix matrix = host.quantized(compute_type);
    Array result(host.rows * host.columns);
    for (int64_t i = 0; i < host.rows * host.columns; ++i)
        result[i] = static_cast<float>(matrix.at(i / host.columns, i % host.columns, host.columns));
    return result;
}

}  // namespace

// ---- initialize_scales

TEST_CASE("initialize_scales takes the grid's statistic of each group", "[initialize_scales][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (Grid grid : reference::quantized_grids()) {
            for (const Case& c : cases(seed)) {
                Random random(seed);
                HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                // A group of zeros has the smallest scale.
                std::fill(host.master.begin(), host.master.begin() + c.group, 0.0);
                const Array expected =
                    reference::initial_scales(grid, c.rows, c.columns, c.group, host.master);
                for (const BackendUnderTest& device : backends_under_test()) {
                    INFO(device.name << ", seed " << seed << ", " << text(grid, c));
                    Bench bench(*device.backend);
                    const ParameterRows parameter = place(bench, host, nullptr);
                    device.backend->initialize_scales({.parameters = {&parameter, 1}});
                    const Array actual = bench.read(scale_of(parameter));
                    reference::Result bound(c.rows * c.columns / c.group);
                    bound.value = bound.magnitude = expected;
                    CHECK(difference(actual, bound, DType::float32, 0x1p-23) == "");
                    CHECK(actual[0] == static_cast<double>(smallest_scale));
                    CHECK(inequality(bench.read(master_of(parameter)), host.master) == "");
                    CHECK(same.check(device, text(grid, c), actual) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("initial scales by hand", "[initialize_scales][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        for (const auto& [grid, expected] :
             std::vector<std::pair<Grid, double>>{{Grid::binary, 0.875},
                                                  {Grid::ternary, 2.0 / 1.5},
                                                  {Grid::quaternary, 1},
                                                  {Grid::integer3, 2.0 / 3},
                                                  {Grid::integer4, 2.0 / 7},
                                                  {Grid::integer5, 2.0 / 15},
                                                  {Grid::integer6, 2.0 / 31},
                                                  {Grid::integer8, 2.0 / 127}}) {
            INFO(device.name << " " << reference::name_of(grid));
            Bench bench(*device.backend);
            HostParameter host{1, 4, grid, 4, {0.5, -2, 0.25, 0.75}, {}, {}};
            // A tensor without a grid is passed over, also between others.
            const HostParameter plain{1, 4, Grid::none, 0, {1, 2, 3, 4}, {}, {}};
            const std::vector<ParameterRows> parameters = {place(bench, plain, nullptr),
                                                           place(bench, host, nullptr)};
            device.backend->initialize_scales({.parameters = parameters});
            CHECK(std::abs(bench.read(scale_of(parameters[1]))[0] - expected) <= 1e-7 * expected);
        }
    }
}

// ---- quantize

TEST_CASE("quantized weights are exactly scale times level", "[quantize][device]") {
    for (uint64_t seed : {1, 2}) {
        for (DType type : compute_types()) {
            for (Grid grid : reference::quantized_grids()) {
                for (const Case& c : cases(seed)) {
                    Random random(seed + 100);
                    const HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                    const Array expected = expected_weights(host, type);
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", "
                                         << text(grid, c));
                        Bench bench(*device.backend);
                        const ComputeWeight& weight = place_weight(bench, host, type);
                        CHECK(weight.scaled == host.one_scale_per_row());
                        CHECK(inequality(revealed(bench, weight), expected) == "");
                        if (weight.scaled)
                            CHECK(inequality(bench.read(weight.row_scale()),
                                             host.quantized(type).row_scale) == "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("without a grid the weights are rounded to the compute type", "[quantize][device]") {
    for (DType type : compute_types()) {
        for (const Case& c : cases(3)) {
            Random random(8);
            const HostParameter host = random_parameter(random, c.rows, c.columns, Grid::none, 0);
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << " " << text(Grid::none, c));
                Bench bench(*device.backend);
                const ComputeWeight& weight = place_weight(bench, host, type);
                CHECK_FALSE(weight.scaled);
                CHECK(weight.row_scale().empty());
                CHECK(inequality(revealed(bench, weight), reference::rounded(type, host.master)) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("weights on ties, on the clip bounds, zero, and scales at the floor", "[quantize][device]") {
    const auto floor = static_cast<double>(smallest_scale);
    for (DType type : compute_types()) {
        for (Grid grid : reference::quantized_grids()) {
            const reference::GridTable table = reference::table_of(grid);
            for (double scale : {0.25, 1.0, 0.0, floor, 3e-3}) {
                // Multiples of a quarter of the scale, for powers of two exactly on every tie and clip bound.
                const double s = reference::effective_scale(scale);
                HostParameter host{75, 15, grid, 15, {0.0, -0.0, table.clip_low * s, table.clip_high * s},
                                   {}, {}};
                for (int quarter = -4 * 140; quarter <= 4 * 140; ++quarter)
                    host.master.push_back(0.25 * quarter * s);
                host.master = reference::rounded(DType::float32, host.master);
                host.master.resize(75 * 15, 0.0);
                host.scale = reference::rounded(DType::float32, Array(75, scale));
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << name_of(type) << " " << reference::name_of(grid) << " scale "
                                     << scale);
                    Bench bench(*device.backend);
                    const ComputeWeight& weight = place_weight(bench, host, type);
                    const Array actual = revealed(bench, weight);
                    CHECK(inequality(actual, expected_weights(host, type)) == "");
                    if (grid == Grid::binary) {
                        CHECK(actual[0] == s);
                        CHECK(actual[1] == s);
                    }
                    CHECK(actual[2] == s * table.levels.front());
                    CHECK(actual[3] == s * table.levels.back());
                }
            }
        }
    }
}

TEST_CASE("query, key and value stand one below the other in one compute weight", "[quantize][device]") {
    for (DType type : compute_types()) {
        for (Grid grid : {Grid::none, Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8}) {
            for (int64_t group : {96, 32}) {
                Random random(21);
                const int64_t columns = 96, head_dim = 6;
                const std::vector<int64_t> rows = {6 * head_dim, 2 * head_dim, 2 * head_dim};
                std::vector<HostParameter> hosts;
                for (int64_t r : rows) hosts.push_back(random_parameter(random, r, columns, grid, group));
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << name_of(type) << " " << reference::name_of(grid) << " group "
                                     << group);
                    Bench bench(*device.backend);
                    ComputeWeight& weight = bench.compute_weight(10 * head_dim, columns, type, false,
                                                                 hosts[0].one_scale_per_row());
                    std::vector<ParameterRows> parameters;
                    Array expected;
                    int64_t first_row = 0;
                    for (const HostParameter& host : hosts) {
                        parameters.push_back(place(bench, host, &weight, first_row));
                        first_row += host.rows;
                        const Array part = expected_weights(host, type);
                        expected.insert(expected.end(), part.begin(), part.end());
                    }
                    device.backend->quantize({.parameters = parameters});
                    CHECK(inequality(revealed(bench, weight), expected) == "");
                    CHECK(bench.damage() == "");

                    // In another order, and the keys alone with other values: only their rows change.
                    std::swap(parameters[0], parameters[2]);
                    device.backend->quantize({.parameters = parameters});
                    CHECK(inequality(revealed(bench, weight), expected) == "");
                    const HostParameter other = random_parameter(random, rows[1], columns, grid, group);
                    const ParameterRows keys = place(bench, other, &weight, rows[0]);
                    device.backend->quantize({.parameters = {&keys, 1}});
                    const Array part = expected_weights(other, type);
                    std::copy(part.begin(), part.end(), expected.begin() + rows[0] * columns);
                    CHECK(inequality(revealed(bench, weight), expected) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("several matrices in one call, with tensors that no matmul reads between them",
          "[quantize][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(22);
            Bench bench(*device.backend);
            std::vector<HostParameter> hosts;
            std::vector<ParameterRows> parameters;
            std::vector<const ComputeWeight*> weights;
            for (Grid grid : {Grid::integer8, Grid::ternary, Grid::none, Grid::integer3}) {
                const int64_t columns = random.integer(2, 90), rows = random.integer(2, 90);
                hosts.push_back(random_parameter(random, rows, columns, grid, columns));
                ComputeWeight& weight = bench.compute_weight(rows, columns, type, grid == Grid::integer8,
                                                             hosts.back().one_scale_per_row());
                weights.push_back(&weight);
                parameters.push_back(place(bench, hosts.back(), &weight));
                parameters.push_back(
                    place(bench, random_parameter(random, 1, columns, Grid::none, 0), nullptr));
            }
            device.backend->quantize({.parameters = parameters});
            for (size_t i = 0; i < hosts.size(); ++i)
                CHECK(inequality(revealed(bench, *weights[i]), expected_weights(hosts[i], type)) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("quantize overwrites what a compute weight held", "[quantize][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(23);
            Bench bench(*device.backend);
            // The switch from full precision to a grid: the same memory, then with scales.
            HostParameter host = random_parameter(random, 37, 61, Grid::none, 0);
            ComputeWeight& weight = bench.compute_weight(37, 61, type, false, false);
            ParameterRows parameter = place(bench, host, &weight);
            device.backend->quantize({.parameters = {&parameter, 1}});
            host = random_parameter(random, 37, 61, Grid::integer4, 61);
            parameter = place(bench, host, &weight);
            device.backend->quantize({.parameters = {&parameter, 1}});
            CHECK(weight.scaled);
            CHECK(inequality(revealed(bench, weight), expected_weights(host, type)) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("a NaN or infinite weight is visible behind quantize", "[quantize][device]") {
    for (DType type : compute_types()) {
        for (Grid grid : reference::quantized_grids()) {
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << " " << reference::name_of(grid));
                Random random(24);
                HostParameter host = random_parameter(random, 2, 8, grid, 8);
                host.master[3] = std::numeric_limits<double>::quiet_NaN();
                Bench bench(*device.backend);
                const Array weights = revealed(bench, place_weight(bench, host, type));
                CHECK(std::isnan(weights[3]));
                for (int i = 8; i < 16; ++i) CHECK(std::isfinite(weights[i]));

                host.master[3] = 0;
                host.scale[0] = std::numeric_limits<double>::quiet_NaN();
                CHECK(std::isnan(revealed(bench, place_weight(bench, host, type))[3]));
            }
        }
    }
}

// ---- ste_backward_and_norm

TEST_CASE("ste_backward_and_norm equals the definition", "[ste_backward_and_norm][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        std::vector<Grid> grids = reference::quantized_grids();
        grids.push_back(Grid::none);
        for (Grid grid : grids) {
            for (const Case& c : cases(seed + 10)) {
                Random random(seed);
                const HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                const double factor = static_cast<float>(0.01 + random.uniform());
                const HostParameter vector = random_parameter(random, 1, 5, Grid::none, 0);
                const reference::StraightThrough expected = reference::straight_through_backward(
                    grid, c.rows, c.columns, c.group, factor, host.master, host.scale, host.gradient);
                for (const BackendUnderTest& device : backends_under_test()) {
                    INFO(device.name << ", seed " << seed << ", " << text(grid, c));
                    Bench bench(*device.backend);
                    // No compute weight takes part, and the vector beside the matrix has its own square.
                    std::vector<ParameterRows> parameters = {place(bench, vector, nullptr),
                                                             place(bench, host, nullptr)};
                    parameters[1].scale_gradient_factor = static_cast<float>(factor);
                    const Tensor squares = bench.output("squares", DType::float32, {2});
                    device.backend->ste_backward_and_norm({.parameters = parameters, .squares = squares});

                    const Array gradient = bench.read(gradient_of(parameters[1]));
                    reference::Result bound;
                    bound.value = bound.magnitude = expected.gradient;
                    for (double& m : bound.magnitude) m = std::abs(m);
                    if (grid == Grid::none || !host.one_scale_per_row())
                        CHECK(inequality(gradient, expected.gradient) == "");
                    else  // a product with 1/s rounds once more than a division
                        CHECK(difference(gradient, bound, DType::float32, 0x1p-23) == "");
                    const Array square = bench.read(squares);
                    CHECK(std::abs(square[1] - expected.squares) <= 1e-6 * expected.squares);
                    CHECK(std::abs(square[0] - reference::dot(vector.gradient, vector.gradient)) <=
                          1e-6 * square[0]);
                    CHECK(inequality(bench.read(gradient_of(parameters[0])), vector.gradient) == "");
                    CHECK(same.check(device, text(grid, c), gradient) == "");
                    CHECK(same.check(device, text(grid, c) + " squares", square) == "");
                    CHECK(inequality(bench.read(master_of(parameters[1])), host.master) == "");
                    if (grid != Grid::none) {
                        const Array scale_gradient = bench.read(scale_gradient_of(parameters[1]));
                        // Each term is rounded a few times; the sum itself is formed in double.
                        CHECK(difference(scale_gradient, expected.scale_gradient, DType::float32, 0x1p-21) ==
                              "");
                        CHECK(same.check(device, text(grid, c) + " scale", scale_gradient) == "");
                        CHECK(inequality(bench.read(scale_of(parameters[1])), host.scale) == "");
                    }
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("straight-through gradients by hand", "[ste_backward_and_norm][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        // 3 bits, s = 0.5: w/s = 1.25 inside, 3 on the upper bound, 3.5 and -5 outside, -4 on the lower
        // bound, 2.5 a tie
        HostParameter host{
            1, 6, Grid::integer3, 6, {0.625, 1.5, 1.75, -2.5, -2, 1.25}, {0.5}, {1, 2, 3, 4, 5, 6}};
        ParameterRows parameter = place(bench, host, nullptr);
        parameter.scale_gradient_factor = 0.25f;
        const Tensor squares = bench.output("squares", DType::float32, {1});
        device.backend->ste_backward_and_norm({.parameters = {&parameter, 1}, .squares = squares});
        CHECK(inequality(bench.read(gradient_of(parameter)), {2, 4, 0, 0, 10, 12}) == "");
        // 0.25 * (2 * -0.25 + 4 * 0 + 6 * 3 + 8 * -4 + 10 * 0 + 12 * -0.5)
        CHECK(bench.read(scale_gradient_of(parameter))[0] == -5.125);
        CHECK(bench.read(squares)[0] == static_cast<float>(4 + 16 + 100 + 144 + 5.125 * 5.125));

        // Two scales per row: the gradient is dŵ already.
        host.group = 3;
        host.scale = {0.5, 0.5};
        parameter = place(bench, host, nullptr);
        device.backend->ste_backward_and_norm({.parameters = {&parameter, 1}, .squares = squares});
        CHECK(inequality(bench.read(gradient_of(parameter)), {1, 2, 0, 0, 5, 6}) == "");
        CHECK(inequality(bench.read(scale_gradient_of(parameter)), {-0.25 + 9, -16 - 3}) == "");
    }
}

TEST_CASE("squares keep their precision over many weights and show NaN", "[ste_backward_and_norm][device]") {
    SameBits same;
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Random random(31);
        HostParameter host{1000, 301, Grid::none, 0, Array(301000, 0.0), {}, Array(301000, 0.001f)};
        host.gradient[5] = 3000;  // in float32 nothing would be added to its square any more
        Bench bench(*device.backend);
        const ParameterRows parameter = place(bench, host, nullptr);
        const Tensor squares = bench.output("squares", DType::float32, {1});
        device.backend->ste_backward_and_norm({.parameters = {&parameter, 1}, .squares = squares});
        const double expected = reference::dot(host.gradient, host.gradient);
        const double actual = bench.read(squares)[0];
        CHECK(std::abs(actual - expected) <= 0.5 * reference::unit_in_last_place(DType::float32, expected));
        CHECK(same.check(device, "squares", {actual}) == "");

        for (Grid grid : {Grid::none, Grid::binary, Grid::ternary, Grid::integer4}) {
            // The first weight is clipped: its gradient does not reach the weight, but it must not be lost.
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                INFO(reference::name_of(grid) << " " << special);
                HostParameter small{1, 4, grid, 4, {50, 0.1f, -0.3f, 0.7f}, {1}, {special, 1, 1, 1}};
                const ParameterRows placed = place(bench, small, nullptr);
                device.backend->ste_backward_and_norm({.parameters = {&placed, 1}, .squares = squares});
                CHECK_FALSE(std::isfinite(bench.read(squares)[0]));
            }
        }
    }
}

// ---- contract

TEST_CASE("operations on parameters check their arguments", "[quantize][contract][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(41);
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const HostParameter host = random_parameter(random, 4, 12, Grid::integer4, 12);
            ComputeWeight& weight = bench.compute_weight(4, 12, type, false, true);
            const ParameterRows good = place(bench, host, &weight);
            const Tensor squares = bench.output("squares", DType::float32, {1});
            std::vector<std::pair<std::string, ParameterRows>> wrong;
            const auto mutate = [&](const std::string& what, auto change) {
                wrong.emplace_back(what, good);
                change(wrong.back().second);
            };
            mutate("no weights", [](ParameterRows& p) { p.master = nullptr; });
            mutate("no scales", [](ParameterRows& p) { p.scale = nullptr; });
            mutate("group zero", [](ParameterRows& p) { p.group = 0; });
            mutate("group does not divide", [](ParameterRows& p) { p.group = 5; });
            const size_t without_compute = wrong.size();
            mutate("fewer columns than the compute weight",
                   [](ParameterRows& p) { p.columns = p.group = 6; });
            mutate("ends behind the compute weight", [](ParameterRows& p) { p.first_row = 1; });
            mutate("starts before the compute weight", [](ParameterRows& p) { p.first_row = -1; });
            for (size_t i = 0; i < wrong.size(); ++i) {
                INFO(wrong[i].first);
                const std::span<const ParameterRows> bad(&wrong[i].second, 1);
                CHECK(contract_violation("quantize", [&] { backend.quantize({.parameters = bad}); }) == "");
                CHECK(contract_violation("adamw_and_quantize", [&] {
                          backend.adamw_and_quantize(
                              {.parameters = bad, .step = AdamWStep{}, .squares = squares});
                      }) == "");
                if (i >= without_compute) continue;
                CHECK(contract_violation("initialize_scales",
                                         [&] { backend.initialize_scales({.parameters = bad}); }) == "");
                CHECK(contract_violation("ste_backward_and_norm", [&] {
                          backend.ste_backward_and_norm({.parameters = bad, .squares = squares});
                      }) == "");
            }
            const auto with_squares = [&](const Tensor& tensor) {
                return contract_violation("ste_backward_and_norm", [&] {
                    backend.ste_backward_and_norm({.parameters = {&good, 1}, .squares = tensor});
                });
            };
            CHECK(with_squares(Tensor()) == "");
            CHECK(with_squares(bench.output("squares", DType::float32, {2})) == "");
            CHECK(with_squares(bench.output("squares", DType::int32, {1})) == "");
        }
    }
}
