// adamw_and_quantize against AdamW in double precision, over several steps.
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

// Host and device state of one parameter that is stepped.
struct Stepped {
    HostParameter host;
    ParameterRows rows;
    reference::AdamWState weight, scale;
    ComputeWeight* compute = nullptr;
};

Tensor tensor(float* data, int64_t count) {
    return Tensor(data, DType::float32, {count});
}

Stepped make(Bench& bench, Random& random, int64_t rows, int64_t columns, Grid grid, int64_t group,
             bool decay, ComputeWeight* compute, int64_t first_row = 0) {
    Stepped result;
    result.host = random_parameter(random, rows, columns, grid, group);
    result.rows = place(bench, result.host, compute, first_row);
    result.rows.decay = decay;
    result.compute = compute;
    const Array zeros(rows * columns, 0.0), zero_scales(result.host.scales(), 0.0);
    result.weight = {result.host.master, zeros, zeros};
    result.scale = {result.host.scale, zero_scales, zero_scales};
    return result;
}

reference::AdamWArguments arguments(const AdamWStep& step, double clip_factor, bool decay) {
    return {step.learning_rate, step.beta1, step.beta2, step.epsilon, decay ? step.weight_decay : 0.0f,
            clip_factor,        step.step};
}

reference::AdamWArguments scale_arguments(const AdamWStep& step, double clip_factor) {
    reference::AdamWArguments result = arguments(step, clip_factor, false);
    result.learning_rate = step.scale_learning_rate;
    result.step = step.scale_step;
    result.relative = true;
    return result;
}

// float32 keeps every step to a few roundings of the weight, and the update to a few roundings of itself.
std::string state_difference(Bench& bench, const reference::AdamWState& state, float* value, float* first,
                             float* second, double step_size) {
    const auto count = static_cast<int64_t>(state.value.size());
    const auto compare = [&](float* data, const Array& expected, double floor) {
        reference::Result bound;
        bound.value = bound.magnitude = expected;
        for (double& m : bound.magnitude) m = std::abs(m) + floor;
        return difference(bench.read(tensor(data, count)), bound, DType::float32, 0x1p-20);
    };
    const double largest =
        std::abs(*std::max_element(state.second_moment.begin(), state.second_moment.end()));
    std::string report = compare(value, state.value, step_size);
    // A first moment may cancel; its terms are no larger than the root of the second one, up to the betas.
    report += compare(first, state.first_moment, std::sqrt(largest));
    return report + compare(second, state.second_moment, 0);
}

}  // namespace

TEST_CASE("adamw_and_quantize follows double-precision AdamW over several steps",
          "[adamw_and_quantize][device]") {
    SameBits same;
    for (DType type : compute_types()) {
        for (const float clip : {0.0f, 0.7f, 1e6f}) {
            for (const BackendUnderTest& device : backends_under_test(type)) {
                Random random(101);
                Bench bench(*device.backend);
                ComputeWeight& qkv = bench.compute_weight(40, 33, type, false, true);
                ComputeWeight& grouped = bench.compute_weight(130, 192, type, false, false);
                ComputeWeight& embedding = bench.compute_weight(71, 48, type, true, true);
                ComputeWeight& plain = bench.compute_weight(17, 29, type, false, false);
                std::vector<Stepped> all;
                all.push_back(make(bench, random, 24, 33, Grid::integer4, 33, true, &qkv));
                all.push_back(make(bench, random, 8, 33, Grid::integer4, 33, true, &qkv, 24));
                all.push_back(make(bench, random, 8, 33, Grid::integer4, 33, true, &qkv, 32));
                all.push_back(make(bench, random, 1, 33, Grid::none, 0, false, nullptr));
                all.push_back(make(bench, random, 130, 192, Grid::quaternary, 64, true, &grouped));
                all.push_back(make(bench, random, 71, 48, Grid::integer8, 48, false, &embedding));
                all.push_back(make(bench, random, 17, 29, Grid::none, 0, true, &plain));
                AdamWStep step;
                step.learning_rate = 3e-3f;
                step.scale_learning_rate = 2e-4f;
                step.weight_decay = 0.1f;
                step.epsilon = 1e-6f;
                step.clip_norm = clip;
                for (int t = 1; t <= 5; ++t) {
                    INFO(device.name << " " << name_of(type) << ", clip norm " << clip << ", step " << t);
                    // The scales are 40 steps younger than the weights.
                    step.step = 40 + t;
                    step.scale_step = t;
                    Array squares;
                    std::vector<ParameterRows> rows;
                    for (Stepped& p : all) {
                        p.host.gradient = random.normals(p.rows.elements(), DType::float32, 0.01 * t);
                        const Array scale_gradient = random.normals(p.host.scales(), DType::float32, 0.02);
                        p.rows.gradient = bench
                                              .input("gradient", p.host.gradient, DType::float32,
                                                     {p.rows.rows, p.rows.columns})
                                              .as<float>();
                        if (p.host.grid != Grid::none)
                            p.rows.scale_gradient = bench
                                                        .input("scale gradient", scale_gradient,
                                                               DType::float32, {p.host.scales()})
                                                        .as<float>();
                        squares.push_back(
                            static_cast<float>(reference::dot(p.host.gradient, p.host.gradient) +
                                               reference::dot(scale_gradient, scale_gradient)));
                        rows.push_back(p.rows);
                    }
                    double total = 0;
                    for (double square : squares) total += square;
                    const double factor = clip > 0 ? std::min(1.0, clip / std::sqrt(total)) : 1.0;
                    CHECK((factor < 1) == (clip > 0 && clip < 1));
                    const Tensor squares_in = bench.input("squares", squares, DType::float32,
                                                          {static_cast<int64_t>(squares.size())});
                    device.backend->adamw_and_quantize(
                        {.parameters = rows, .step = step, .squares = squares_in});
                    for (size_t i = 0; i < all.size(); ++i) {
                        INFO("parameter " << i);
                        Stepped& p = all[i];
                        reference::adamw(p.weight, p.host.gradient, arguments(step, factor, p.rows.decay));
                        CHECK(state_difference(bench, p.weight, p.rows.master, p.rows.first_moment,
                                               p.rows.second_moment, step.learning_rate) == "");
                        const Array master = bench.read(master_of(p.rows));
                        CHECK(same.check(device,
                                         std::to_string(i) + name_of(type) + std::to_string(clip) +
                                             std::to_string(t),
                                         master) == "");
                        if (p.host.grid == Grid::none) continue;
                        const Array gradient = bench.read(scale_gradient_of(p.rows));
                        reference::adamw(p.scale, gradient, scale_arguments(step, factor));
                        for (double& s : p.scale.value) s = std::max(s, static_cast<double>(smallest_scale));
                        CHECK(state_difference(bench, p.scale, p.rows.scale, p.rows.scale_first_moment,
                                               p.rows.scale_second_moment, step.scale_learning_rate) == "");
                    }
                }
                // The levels are those of the new weights and scales, bit by bit.
                std::vector<std::pair<ComputeWeight*, Array>> matrices;
                for (const Stepped& p : all) {
                    if (p.compute == nullptr) continue;
                    if (matrices.empty() || matrices.back().first != p.compute)
                        matrices.emplace_back(p.compute, Array());
                    HostParameter now = p.host;
                    now.master = bench.read(master_of(p.rows));
                    if (now.grid != Grid::none) now.scale = bench.read(scale_of(p.rows));
                    const reference::QuantizedMatrix matrix = now.quantized(type);
                    for (int64_t k = 0; k < now.rows * now.columns; ++k)
                        matrices.back().second.push_back(
                            static_cast<float>(matrix.at(k / now.columns, k % now.columns, now.columns)));
                }
                for (const auto& [compute, expected] : matrices) {
                    INFO(device.name << " " << name_of(type) << ", matrix of " << compute->rows << " rows");
                    CHECK(inequality(revealed(bench, *compute), expected) == "");
                }
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("one AdamW step by hand", "[adamw_and_quantize][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        const HostParameter host{1, 3, Grid::none, 0, {1, -2, 0.5}, {}, {0.5, 0, -4}};
        ParameterRows p = place(bench, host, nullptr);
        AdamWStep step;
        step.learning_rate = 0.1f;
        step.weight_decay = 0.5f;
        // At t = 1 the update is g / |g|; without a gradient it is 0 / 0 unless epsilon is positive.
        step.epsilon = 1e-12f;
        const Tensor squares = bench.input("squares", {16.25}, DType::float32, {1});
        device.backend->adamw_and_quantize({.parameters = {&p, 1}, .step = step, .squares = squares});
        Array w = bench.read(master_of(p));
        CHECK(std::abs(w[0] - (1 - 0.1 * (1 + 0.5))) < 1e-6);
        CHECK(std::abs(w[1] - (-2 + 0.1 * 0.5 * 2)) < 1e-6);
        CHECK(std::abs(w[2] - (0.5 - 0.1 * (-1 + 0.25))) < 1e-6);
        CHECK(std::abs(bench.read(tensor(p.first_moment, 3))[2] - -0.4) < 1e-6);
        CHECK(std::abs(bench.read(tensor(p.second_moment, 3))[2] - 0.05 * 16) < 1e-6);

        // Clipping to a norm of 1 and no decay: the moments see g / 4.
        const HostParameter clipped{1, 1, Grid::none, 0, {1}, {}, {4}};
        p = place(bench, clipped, nullptr);
        p.decay = false;
        step.clip_norm = 1;
        device.backend->adamw_and_quantize({.parameters = {&p, 1},
                                            .step = step,
                                            .squares = bench.input("squares", {16}, DType::float32, {1})});
        w = bench.read(master_of(p));
        CHECK(std::abs(w[0] - 0.9) < 1e-6);
        CHECK(std::abs(bench.read(tensor(p.first_moment, 1))[0] - 0.1) < 1e-7);
        CHECK(std::abs(bench.read(tensor(p.second_moment, 1))[0] - 0.05) < 1e-7);
    }
}

TEST_CASE("clipping begins where the norm exceeds the limit", "[adamw_and_quantize][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        // The norm of both tensors together is 5.
        for (double clip : {4.0, 4.875, 5.0, 5.125, 0.0}) {
            INFO(device.name << ", clip norm " << clip);
            Bench bench(*device.backend);
            const std::vector<ParameterRows> parameters = {
                place(bench, HostParameter{1, 1, Grid::none, 0, {1}, {}, {3}}, nullptr),
                place(bench, HostParameter{1, 1, Grid::none, 0, {1}, {}, {-4}}, nullptr)};
            AdamWStep step;
            step.clip_norm = static_cast<float>(clip);
            device.backend->adamw_and_quantize(
                {.parameters = parameters,
                 .step = step,
                 .squares = bench.input("squares", {9, 16}, DType::float32, {2})});
            const double factor = clip > 0 && clip < 5 ? clip / 5 : 1;
            CHECK(std::abs(bench.read(tensor(parameters[0].first_moment, 1))[0] - 0.3 * factor) < 1e-6);
            CHECK(std::abs(bench.read(tensor(parameters[1].first_moment, 1))[0] + 0.4 * factor) < 1e-6);
        }
    }
}

TEST_CASE("scales stay at or above the smallest scale", "[adamw_and_quantize][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            // The first scale is pushed down through the floor, the second up.
            const HostParameter host{
                2, 2, Grid::integer4, 2, {0.1f, -0.1f, 0.2f, 0.3f}, {2e-5f, 2e-5f}, {0, 0, 0, 0}};
            ComputeWeight& weight = bench.compute_weight(2, 2, type, false, true);
            ParameterRows p = place(bench, host, &weight);
            p.scale_gradient = bench.input("scale gradient", {1, -1}, DType::float32, {2}).as<float>();
            AdamWStep step;
            step.scale_learning_rate = 0.6f;
            step.weight_decay = 0.9f;  // never applies to scales
            device.backend->adamw_and_quantize({.parameters = {&p, 1},
                                                .step = step,
                                                .squares = bench.input("squares", {2}, DType::float32, {1})});
            const Array scale = bench.read(scale_of(p));
            CHECK(scale[0] == static_cast<double>(smallest_scale));
            CHECK(std::abs(scale[1] - 3.2e-5) < 1e-10);
            const Array expected = {reference::effective_scale(scale[0]),
                                    reference::effective_scale(scale[1])};
            CHECK(inequality(bench.read(weight.row_scale()), expected) == "");
            CHECK(revealed(bench, weight)[0] == 7 * expected[0]);
            CHECK(inequality(bench.read(master_of(p)), host.master) == "");
        }
    }
}

TEST_CASE("a NaN gradient is visible in weights and scales", "[adamw_and_quantize][device]") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const BackendUnderTest& device : backends_under_test()) {
        for (float clip : {0.0f, 1.0f}) {
            INFO(device.name << " clip norm " << clip);
            Bench bench(*device.backend);
            HostParameter host{
                2, 2, Grid::integer4, 2, {0.1f, -0.1f, 0.2f, 0.3f}, {0.1f, 0.2f}, {nan, 1, 1, 1}};
            ParameterRows p = place(bench, host, nullptr);
            p.scale_gradient = bench.input("scale gradient", {nan, 1}, DType::float32, {2}).as<float>();
            AdamWStep step;
            step.learning_rate = step.scale_learning_rate = 1e-3f;
            step.clip_norm = clip;
            device.backend->adamw_and_quantize(
                {.parameters = {&p, 1},
                 .step = step,
                 .squares = bench.input("squares", {nan}, DType::float32, {1})});
            CHECK(std::isnan(bench.read(master_of(p))[0]));
            CHECK(std::isnan(bench.read(scale_of(p))[0]));
        }
    }
}

TEST_CASE("adamw_and_quantize counts steps from one", "[adamw_and_quantize][contract][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        const ParameterRows p = place(bench, HostParameter{1, 2, Grid::none, 0, {1, 2}, {}, {1, 1}}, nullptr);
        const Tensor squares = bench.input("squares", {2}, DType::float32, {1});
        const auto call = [&](int64_t t, int64_t scale_t, const Tensor& tensor) {
            AdamWStep step;
            step.step = t;
            step.scale_step = scale_t;
            return contract_violation("adamw_and_quantize", [&] {
                device.backend->adamw_and_quantize({.parameters = {&p, 1}, .step = step, .squares = tensor});
            });
        };
        CHECK(call(0, 1, squares) == "");
        CHECK(call(1, 0, squares) == "");
        CHECK(call(1, 1, Tensor()) == "");
        CHECK(call(1, 1, with_dtype(squares, DType::int32)) == "");
    }
}
