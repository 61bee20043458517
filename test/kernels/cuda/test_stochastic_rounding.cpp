// Weights without a float32 master: rounded to bfloat16 by chance, and otherwise like their float32 twins.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/weights/stochastic_rounding.cuh"
#include "test/kernels/cuda/parameters_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("rounding by chance takes one of the two neighbours", "[cuda][stochastic_rounding]") {
    Random random(15);
    for (int i = 0; i < 20000; ++i) {
        const auto value = static_cast<float>(random.normal() * std::exp2(40 * random.uniform() - 20));
        const auto word = static_cast<uint32_t>(random.integer(0, 0xffffffff));
        const auto rounded = static_cast<float>(CU_BACKEND::round_by_chance(value, word));
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const auto at = [](uint32_t upper) {
            bfloat16 result;
            result.bits = static_cast<uint16_t>(upper);
            return static_cast<float>(result);
        };
        const float inner = at(bits >> 16), outer = at((bits >> 16) + 1);
        INFO(value << " to " << rounded);
        REQUIRE((rounded == inner || rounded == outer));
        // Outwards in 2^16 * distance / gap of 2^16 cases.
        REQUIRE((rounded == outer) == ((word >> 16) + (bits & 0xffff) >= 0x10000));
    }
    const float infinity = std::numeric_limits<float>::infinity();
    for (uint32_t word : {0u, 0x12345678u, 0xffffffffu}) {
        for (float exact : {0.0f, -0.0f, 1.0f, -2.5f, infinity, -infinity})
            CHECK(static_cast<float>(CU_BACKEND::round_by_chance(exact, word)) == exact);
        CHECK(std::isnan(static_cast<float>(CU_BACKEND::round_by_chance(std::nanf(""), word))));
    }
}

namespace {

// Weights after one step that takes each of `host` times keep = 1 - learning_rate * weight_decay, and no
// gradient.
std::vector<bfloat16> decayed(Backend& backend, const HostParameter& host, float keep, int64_t t,
                              uint32_t number = 0, int64_t parts = 1) {
    Bench bench(backend);
    ParameterRows whole = place_narrow(bench, host, nullptr);
    whole.number = number;
    std::vector<ParameterRows> parameters;
    for (int64_t i = 0; i < parts; ++i) {
        const int64_t first = host.rows * i / parts;
        parameters.push_back(rows_of(whole, first, host.rows * (i + 1) / parts - first));
    }
    AdamWStep step;
    step.learning_rate = 1;
    step.weight_decay = 1 - keep;
    step.step = t;
    backend.adamw_and_quantize({.parameters = parameters,
                                .step = step,
                                .squares = bench.input("squares", {0}, DType::float32, {1})});
    CHECK(bench.damage() == "");
    return numbers_of<bfloat16>(backend, whole.narrow_master, host.rows * host.columns);
}

int64_t differing(const std::vector<bfloat16>& a, const std::vector<bfloat16>& b) {
    int64_t count = 0;
    for (size_t i = 0; i < a.size(); ++i) count += a[i].bits != b[i].bits;
    return count;
}

}  // namespace

TEST_CASE("weights in bfloat16 are rounded without bias", "[cuda][stochastic_rounding][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends()) {
        INFO(device.name);
        const int64_t n = 1 << 16;
        const HostParameter ones{64, n / 64, Grid::none, 0, Array(n, 1.0), {}, Array(n, 0.0)};
        // One takes 1 - 2^-10, a quarter of the way to the next smaller bfloat16.
        for (int64_t t : {1, 2, 1000000}) {
            const std::vector<bfloat16> weights = decayed(*device.backend, ones, 1 - 0x1p-10f, t);
            int64_t moved = 0;
            for (bfloat16 w : weights) {
                const float value = w;
                REQUIRE((value == 1 || value == 1 - 0x1p-8f));
                moved += value != 1;
            }
            const double deviation = std::sqrt(n * 0.25 * 0.75);
            INFO("step " << t << ": " << moved << " of " << n);
            CHECK(std::abs(static_cast<double>(moved) - 0.25 * n) < 4 * deviation);
        }
        // The sum of many weights of all sizes, in units of their last place.
        Random random(16);
        HostParameter host{64, n / 64, Grid::none, 0, random.normals(n, DType::bfloat16), {}, Array(n, 0.0)};
        const float keep = 0.9f;
        const std::vector<bfloat16> weights = decayed(*device.backend, host, keep, 5);
        double bias = 0;
        for (int64_t i = 0; i < n; ++i) {
            const double exact = static_cast<float>(host.master[i]) * keep;
            const double unit = reference::unit_in_last_place(DType::bfloat16, std::abs(exact));
            const double error = (static_cast<float>(weights[i]) - exact) / unit;
            REQUIRE(std::abs(error) < 1.0001);
            bias += error;
        }
        CHECK(std::abs(bias) < 4 * 0.5 * std::sqrt(n));
    }
}

TEST_CASE("a step's chance is its own and comes again", "[cuda][stochastic_rounding][cuda][device]") {
    std::vector<bfloat16> first;
    for (const BackendUnderTest& device : cuda_backends()) {
        INFO(device.name);
        const int64_t n = 50 * 82;
        const HostParameter ones{50, 82, Grid::none, 0, Array(n, 1.0), {}, Array(n, 0.0)};
        const float keep = 1 - 0x1p-9f;  // half of the way
        const std::vector<bfloat16> weights = decayed(*device.backend, ones, keep, 3);
        CHECK(differing(weights, decayed(*device.backend, ones, keep, 3)) == 0);
        if (first.empty()) first = weights;
        CHECK(differing(weights, first) == 0);
        // In parts, as ranks have it.
        CHECK(differing(weights, decayed(*device.backend, ones, keep, 3, 0, 3)) == 0);
        // Another shape of the same elements, other alignment.
        HostParameter reshaped = ones;
        std::swap(reshaped.rows, reshaped.columns);
        CHECK(differing(weights, decayed(*device.backend, reshaped, keep, 3)) == 0);
        for (int64_t count :
             {differing(weights, decayed(*device.backend, ones, keep, 4)),
              differing(weights, decayed(*device.backend, ones, keep, 3 + (int64_t{1} << 32))),
              differing(weights, decayed(*device.backend, ones, keep, 3, 1))})
            CHECK(std::abs(static_cast<double>(count) - 0.5 * n) < 4 * 0.5 * std::sqrt(n));
    }
}

TEST_CASE("small steps add up in bfloat16", "[cuda][stochastic_rounding][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends()) {
        INFO(device.name);
        const int64_t n = 4096;
        const HostParameter host{8, n / 8, Grid::none, 0, Array(n, 1.0), {}, Array(n, 1.0)};
        Bench bench(*device.backend);
        ParameterRows parameter = place_narrow(bench, host, nullptr);
        AdamWStep step;
        step.learning_rate = 0x1p-13f;  // 1/64 of the distance to the next bfloat16 above one
        const Tensor squares = bench.input("squares", {1}, DType::float32, {1});
        for (step.step = 1; step.step <= 64; ++step.step)
            device.backend->adamw_and_quantize(
                {.parameters = {&parameter, 1}, .step = step, .squares = squares});
        double mean = 0;
        for (bfloat16 w : numbers_of<bfloat16>(*device.backend, parameter.narrow_master, n))
            mean += static_cast<float>(w) / static_cast<double>(n);
        CHECK(std::abs(mean - (1 - 64 * 0x1p-13)) < 3e-4);
        CHECK(bench.damage() == "");
    }
}

TEST_CASE("weights in bfloat16 quantize and pass gradients like their float32 twins",
          "[cuda][stochastic_rounding][cuda][device]") {
    std::vector<Grid> grids = reference::quantized_grids();
    grids.push_back(Grid::none);
    for (const BackendUnderTest& device : cuda_backends())
        for (Grid grid : grids)
            for (const MatrixCase& c : matrix_cases) {
                INFO(device.name << ", " << text(grid, c));
                Random random(17);
                HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                host.master = reference::rounded(DType::bfloat16, host.master);
                Bytes levels[2];
                Array scales[2], gradients[2], scale_gradients[2], squares_read[2];
                for (int narrow = 0; narrow < 2; ++narrow) {
                    Bench bench(*device.backend);
                    ComputeWeight& weight =
                        bench.compute_weight(c.rows, c.columns, DType::bfloat16, false, false);
                    const ParameterRows parameter =
                        narrow != 0 ? place_narrow(bench, host, &weight) : place(bench, host, &weight);
                    const Tensor squares = bench.output("squares", DType::float32, {1});
                    device.backend->ste_backward_and_norm(
                        {.parameters = {&parameter, 1}, .squares = squares});
                    device.backend->quantize({.parameters = {&parameter, 1}});
                    levels[narrow] = storage_of(*device.backend, weight);
                    gradients[narrow] = bench.read(gradient_of(parameter));
                    squares_read[narrow] = bench.read(squares);
                    device.backend->initialize_scales({.parameters = {&parameter, 1}});
                    if (grid != Grid::none) {
                        scale_gradients[narrow] = bench.read(scale_gradient_of(parameter));
                        scales[narrow] = bench.read(scale_of(parameter));
                    }
                    CHECK(bench.damage() == "");
                }
                CHECK((levels[0] == levels[1]));
                CHECK(inequality(gradients[0], gradients[1]) == "");
                CHECK(inequality(scale_gradients[0], scale_gradients[1]) == "");
                CHECK(inequality(scales[0], scales[1]) == "");
                CHECK(inequality(squares_read[0], squares_read[1]) == "");
            }
}

TEST_CASE("the levels of a step are those of the rounded weights",
          "[cuda][stochastic_rounding][cuda][device]") {
    for (const BackendUnderTest& device : cuda_backends())
        for (Grid grid : {Grid::none, Grid::ternary, Grid::integer4})
            for (const MatrixCase& c : matrix_cases) {
                INFO(device.name << ", " << text(grid, c));
                Random random(18);
                const HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                Bench bench(*device.backend);
                ComputeWeight& weight =
                    bench.compute_weight(c.rows, c.columns, DType::bfloat16, false, false);
                ParameterRows parameter = place_narrow(bench, host, &weight);
                if (grid != Grid::none)
                    parameter.scale_gradient = bench
                                                   .input("scale gradient", Array(host.scales(), 0.25),
                                                          DType::float32, {host.scales()})
                                                   .as<float>();
                device.backend->adamw_and_quantize(
                    {.parameters = {&parameter, 1},
                     .step = example_step(9),
                     .squares = bench.input("squares", {1}, DType::float32, {1})});
                const Bytes stepped = storage_of(*device.backend, weight);
                device.backend->quantize({.parameters = {&parameter, 1}});
                CHECK((storage_of(*device.backend, weight) == stepped));
                CHECK(bench.damage() == "");
            }
}

TEST_CASE("weights are in float32 or in bfloat16, and the CPU keeps float32",
          "[cuda][stochastic_rounding][contract]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Random random(19);
        Bench bench(*device.backend);
        const HostParameter host = random_parameter(random, 2, 8, Grid::integer4, 8);
        const Tensor squares = bench.output("squares", DType::float32, {1});
        ParameterRows both = place(bench, host, nullptr);
        both.narrow_master = narrow_copy(bench, host);
        std::vector<ParameterRows> refused = {both};
        if (device.is_cpu()) refused.push_back(place_narrow(bench, host, nullptr));
        for (const ParameterRows& p : refused) {
            Backend& backend = *device.backend;
            CHECK(contract_violation("initialize_scales", [&] {
                      backend.initialize_scales({.parameters = {&p, 1}});
                  }) == "");
            CHECK(contract_violation("quantize", [&] { backend.quantize({.parameters = {&p, 1}}); }) == "");
            CHECK(contract_violation("ste_backward_and_norm", [&] {
                      backend.ste_backward_and_norm({.parameters = {&p, 1}, .squares = squares});
                  }) == "");
            CHECK(contract_violation("adamw_and_quantize", [&] {
                      backend.adamw_and_quantize(
                          {.parameters = {&p, 1}, .step = AdamWStep{}, .squares = squares});
                  }) == "");
        }
    }
}
