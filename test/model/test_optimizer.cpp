// The optimizer step over a whole model, the switch to quantization, and what a number of bits means.
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/optimizer.h"
#include "model/quantizer.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/files.h"
#include "test/support/reference.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct State {
    std::vector<Array> weights, first_moments, second_moments;
};

State state_of(TinyModel& tiny) {
    State state;
    for (const Parameter& parameter : tiny.parameters().all()) {
        const int64_t n = parameter.rows.elements();
        state.weights.push_back(tiny.read(parameter.rows.master, n));
        state.first_moments.push_back(tiny.read(parameter.rows.first_moment, n));
        state.second_moments.push_back(tiny.read(parameter.rows.second_moment, n));
    }
    return state;
}

// A model whose phase is still full precision.
struct FullPrecisionModel : TinyModel {
    FullPrecisionModel(Backend& backend, DType dtype, const QuantizationConfig& quantization)
        : TinyModel(backend, dtype, quantization, 2) {
        parameters().use_quantization(false);
        parameters().quantize(backend);
    }
};

void train_steps(TinyModel& tiny, Optimizer& optimizer, int steps, double learning_rate = 1e-2) {
    for (int step = 0; step < steps; ++step) {
        tiny.train(tiny.tokens(2, 100 + optimizer.steps()));
        optimizer.finish_gradients();
        optimizer.step(learning_rate);
    }
}

double evaluate(TinyModel& tiny) {
    const Tokens tokens = tiny.tokens(2, 1);
    return tiny.model.evaluate(tokens.inputs.data(), tokens.targets.data(), 2);
}

bool all_zero(const Array& values) {
    for (double value : values)
        if (value != 0) return false;
    return true;
}

}  // namespace

TEST_CASE("each number of bits has its grid", "[quantizer][device]") {
    CHECK(grid_of_bits(1) == Grid::binary);
    CHECK(grid_of_bits(1.58) == Grid::ternary);
    CHECK(grid_of_bits(2) == Grid::quaternary);
    CHECK(grid_of_bits(3) == Grid::integer3);
    CHECK(grid_of_bits(4) == Grid::integer4);
    CHECK(grid_of_bits(5) == Grid::integer5);
    CHECK(grid_of_bits(6) == Grid::integer6);
    CHECK(grid_of_bits(8) == Grid::integer8);
    CHECK(grid_of_bits(16) == Grid::none);
    for (double bits : {0.0, -1.0, 1.5, 1.59, 2.5, 7.0, 9.0, 32.0, std::nan("")}) {
        INFO(bits);
        const std::string error = error_of([&] { grid_of_bits(bits); });
        CHECK_THAT(error, contains_text("-b") && contains_text("1.58") && contains_text("16"));
        CHECK(error.find('\n') == std::string::npos);
        CHECK_THROWS_AS(grid_of_bits(bits), std::runtime_error);
    }
    CHECK_THAT(error_of([] { grid_of_bits(7); }), contains_text("7 bits"));
}

TEST_CASE("the embedding has at least four bits", "[quantizer][device]") {
    for (double bits : {1.0, 1.58, 2.0, 3.0, 4.0}) CHECK(embedding_bits(bits) == 4);
    for (double bits : {5.0, 6.0, 8.0}) CHECK(embedding_bits(bits) == bits);
    CHECK_FALSE(QuantizationConfig{16}.enabled());
    CHECK(QuantizationConfig{8}.enabled());
}

TEST_CASE("the scale's gradient factor is 1 / sqrt(n Qp)", "[quantizer][device]") {
    CHECK(scale_gradient_factor(Grid::binary, 100) == Approx(0.1));
    CHECK(scale_gradient_factor(Grid::ternary, 10000) == Approx(0.01));
    CHECK(scale_gradient_factor(Grid::quaternary, 25) == Approx(0.2));
    CHECK(scale_gradient_factor(Grid::integer3, 12) == Approx(1.0 / 6));   // 12 * 3 = 36
    CHECK(scale_gradient_factor(Grid::integer4, 28) == Approx(1.0 / 14));  // 28 * 7 = 196
    CHECK(scale_gradient_factor(Grid::integer8, 127) == Approx(1.0 / 127));
    CHECK(scale_gradient_factor(Grid::integer5, int64_t{15} << 40) == Approx(1.0 / 15 / (1 << 20)));
}

TEST_CASE("the switch sets scales from the weights and leaves weights and moments alone",
          "[optimizer][device]") {
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const QuantizationConfig& quantization :
                 {QuantizationConfig{1, 0}, QuantizationConfig{1.58, 8}, QuantizationConfig{2, 0},
                  QuantizationConfig{4, 8}, QuantizationConfig{8, 0}}) {
                INFO(device.name << ", " << name_of(dtype) << ", " << quantization.bits << " bits");
                FullPrecisionModel tiny(*device.backend, dtype, quantization);
                Optimizer optimizer(*device.backend, tiny.parameters(), {});
                train_steps(tiny, optimizer, 3);
                const double full_precision = evaluate(tiny);
                // What an earlier use of the memory may have left.
                for (const Parameter& parameter : tiny.parameters().all())
                    if (parameter.rows.scale != nullptr) {
                        const Array left(parameter.rows.rows, 0.5);
                        for (float* data : {parameter.rows.scale, parameter.rows.scale_first_moment,
                                            parameter.rows.scale_second_moment})
                            tiny.write(data, left);
                    }
                const State before = state_of(tiny);
                optimizer.begin_quantization();
                const State after = state_of(tiny);
                CHECK(after.weights == before.weights);
                CHECK(after.first_moments == before.first_moments);
                CHECK(after.second_moments == before.second_moments);
                CHECK(tiny.parameters().quantized());
                CHECK(optimizer.steps() == 3);
                CHECK(optimizer.scale_steps() == 0);

                FullPrecisionModel replaced(*device.backend, dtype, {});
                for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
                    const Parameter& parameter = tiny.parameters().all()[i];
                    const ParameterRows& rows = parameter.rows;
                    INFO(parameter.name);
                    Array used = before.weights[i];
                    if (!parameter.is_vector) {
                        REQUIRE(rows.scales() == rows.rows * (quantization.group ? rows.columns / 8 : 1));
                        CHECK(all_zero(tiny.read(rows.scale_first_moment, rows.scales())));
                        CHECK(all_zero(tiny.read(rows.scale_second_moment, rows.scales())));
                        const Array scale = tiny.read(rows.scale, rows.scales());
                        const Array expected =
                            reference::initial_scales(grid_of_bits(parameter.bits), rows.rows, rows.columns,
                                                      rows.group, before.weights[i]);
                        for (size_t j = 0; j < scale.size(); ++j)
                            CHECK(scale[j] == Approx(expected[j]).epsilon(1e-6));
                        const reference::QuantizedMatrix quantized = reference::quantize(
                            rows.grid, rows.rows, rows.columns, rows.group, before.weights[i], scale, dtype);
                        for (int64_t j = 0; j < rows.elements(); ++j)
                            used[j] = quantized.at(j / rows.columns, j % rows.columns, rows.columns);
                    }
                    replaced.write(replaced.parameters().all()[i].rows.master, used);
                }
                // The quantized model is the full-precision model of the weights s * q, up to rounding.
                replaced.parameters().quantize(*device.backend);
                const double quantized = evaluate(tiny);
                CHECK(quantized == Approx(evaluate(replaced)).epsilon(dtype == DType::float32 ? 1e-6 : 3e-3));
                CHECK(quantized != full_precision);
            }
}

TEST_CASE("a gradient that is not finite is reported with its name", "[optimizer][device]") {
    const float nan = std::numeric_limits<float>::quiet_NaN(),
                infinity = std::numeric_limits<float>::infinity();
    for (const BackendUnderTest& device : backends_under_test(DType::float32))
        for (const bool quantized : {false, true})
            for (float value : {nan, infinity, -infinity, 1e30f}) {
                TinyModel tiny(*device.backend, DType::float32,
                               quantized ? QuantizationConfig{4, 0} : QuantizationConfig{}, 2);
                Optimizer optimizer(*device.backend, tiny.parameters(), {});
                for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
                    const Parameter& parameter = tiny.parameters().all()[i];
                    INFO(device.name << ", " << parameter.name << ", " << value);
                    tiny.train(tiny.tokens(2, 1));
                    // In the middle of the range of levels, where the straight-through estimator lets it
                    // pass.
                    const Array weights = tiny.weight(i);
                    size_t place = 0;
                    for (size_t j = 0; j < weights.size(); ++j)
                        if (std::abs(weights[j]) < std::abs(weights[place])) place = j;
                    tiny.write(parameter.rows.gradient + place, {value});
                    CHECK_FALSE(std::isfinite(optimizer.finish_gradients()));
                    CHECK(optimizer.offender() == parameter.name);
                }
                tiny.train(tiny.tokens(2, 1));
                CHECK(std::isfinite(optimizer.finish_gradients()));
                CHECK(optimizer.offender().empty());
            }
}

TEST_CASE("the norm is that of all gradients, and clipping bounds it", "[optimizer][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        TinyModel tiny(*device.backend, DType::float32, {3, 8}, 2);
        OptimizerConfig config;
        config.weight_decay = 0;
        config.epsilon = 1e3;  // so large that a step is proportional to the gradient
        double largest_change[2];
        double norm = 0;
        const State start = state_of(tiny);
        for (const bool clipped : {false, true}) {
            config.clip_norm = clipped ? norm / 4 : 0;
            Optimizer optimizer(*device.backend, tiny.parameters(), config);
            for (size_t i = 0; i < start.weights.size(); ++i) {
                const ParameterRows& rows = tiny.parameters().all()[i].rows;
                tiny.write(rows.master, start.weights[i]);
                tiny.write(rows.first_moment, Array(rows.elements(), 0.0));
                tiny.write(rows.second_moment, Array(rows.elements(), 0.0));
            }
            tiny.parameters().initialize_scales(*device.backend);
            tiny.parameters().quantize(*device.backend);
            tiny.train(tiny.tokens(2, 1));
            norm = optimizer.finish_gradients();
            double squares = 0;
            for (size_t i = 0; i < start.weights.size(); ++i) {
                const ParameterRows& rows = tiny.parameters().all()[i].rows;
                for (double g : tiny.gradient(i)) squares += g * g;
                if (rows.scales() == 0) continue;
                for (double g : tiny.read(rows.scale_gradient, rows.scales())) squares += g * g;
            }
            CHECK(norm == Approx(std::sqrt(squares)).epsilon(1e-5));
            optimizer.step(1e3);
            largest_change[clipped] = 0;
            const State moved = state_of(tiny);
            for (size_t i = 0; i < start.weights.size(); ++i)
                for (size_t j = 0; j < start.weights[i].size(); ++j)
                    largest_change[clipped] = std::max(largest_change[clipped],
                                                       std::abs(moved.weights[i][j] - start.weights[i][j]));
        }
        INFO(device.name);
        CHECK(largest_change[0] == Approx(4 * largest_change[1]).epsilon(1e-3));
    }
}

TEST_CASE("quantization alone changes no weight", "[optimizer][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        FullPrecisionModel tiny(*device.backend, DType::float32, {4, 0});
        const State before = state_of(tiny);
        const double full_precision = evaluate(tiny);
        Optimizer optimizer(*device.backend, tiny.parameters(), {});
        optimizer.begin_quantization();
        const double quantized = evaluate(tiny);
        CHECK(state_of(tiny).weights == before.weights);
        CHECK(quantized != full_precision);
        CHECK(std::abs(quantized - full_precision) < 0.5);
        CHECK(evaluate(tiny) == quantized);
        tiny.parameters().use_quantization(false);
        tiny.parameters().quantize(*device.backend);
        CHECK(evaluate(tiny) == full_precision);
    }
}

TEST_CASE("steps are counted, scales from the switch on, and restored", "[optimizer][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        FullPrecisionModel through(*device.backend, DType::float32, {4, 8});
        Optimizer optimizer(*device.backend, through.parameters(), {});
        train_steps(through, optimizer, 3);
        CHECK(optimizer.steps() == 3);
        CHECK(optimizer.scale_steps() == 0);
        optimizer.begin_quantization();
        train_steps(through, optimizer, 2);
        CHECK(optimizer.steps() == 5);
        CHECK(optimizer.scale_steps() == 2);

        // The same state in another model continues with the same bits, but only with the same counters.
        const auto continued = [&](int64_t steps, int64_t scale_steps) {
            FullPrecisionModel copy(*device.backend, DType::float32, {4, 8});
            Optimizer other(*device.backend, copy.parameters(), {});
            copy.parameters().use_quantization(true);
            for (size_t i = 0; i < copy.parameters().all().size(); ++i) {
                const ParameterRows& from = through.parameters().all()[i].rows;
                const ParameterRows& to = copy.parameters().all()[i].rows;
                const auto transfer = [&](float* target, const float* source, int64_t count) {
                    if (count > 0) copy.write(target, through.read(source, count));
                };
                transfer(to.master, from.master, from.elements());
                transfer(to.first_moment, from.first_moment, from.elements());
                transfer(to.second_moment, from.second_moment, from.elements());
                transfer(to.scale, from.scale, from.scales());
                transfer(to.scale_first_moment, from.scale_first_moment, from.scales());
                transfer(to.scale_second_moment, from.scale_second_moment, from.scales());
            }
            copy.parameters().quantize(*device.backend);
            other.restore_steps(steps, scale_steps);
            CHECK(other.steps() == steps);
            CHECK(other.scale_steps() == scale_steps);
            copy.train(copy.tokens(2, 55));
            other.finish_gradients();
            other.step(1e-2);
            std::vector<Array> result = state_of(copy).weights;
            for (const Parameter& parameter : copy.parameters().all())
                if (parameter.rows.scales() > 0)
                    result.push_back(copy.read(parameter.rows.scale, parameter.rows.scales()));
            return result;
        };
        const std::vector<Array> same = continued(5, 2), fewer = continued(0, 2), younger = continued(5, 0);
        through.train(through.tokens(2, 55));
        optimizer.finish_gradients();
        optimizer.step(1e-2);
        const std::vector<Array> weights = state_of(through).weights;
        CHECK(std::vector<Array>(same.begin(), same.begin() + weights.size()) == weights);
        CHECK(evaluate(through) == evaluate(through));
        CHECK(fewer != same);
        CHECK(younger != same);
    }
}
