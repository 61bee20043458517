// The whole model: gradients against finite differences of its own loss, and properties that hold exactly
// whatever the weights are. test/torch compares the numbers with PyTorch.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "model/optimizer.h"
#include "model/transformer.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/files.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

double loss_of(TinyModel& tiny, const Tokens& tokens) {
    return tiny.model.evaluate(tokens.inputs.data(), tokens.targets.data(), tiny.model.batch());
}

double norm(const Array& values) {
    double squares = 0;
    for (double value : values) squares += value * value;
    return std::sqrt(squares);
}

double distance(const Array& left, const Array& right) {
    REQUIRE(left.size() == right.size());
    Array difference(left.size());
    for (size_t i = 0; i < left.size(); ++i) difference[i] = left[i] - right[i];
    return norm(difference);
}

// -log softmax(logits)[target]
double cross_entropy(const float* logits, int64_t vocabulary, int32_t target) {
    const double largest = *std::max_element(logits, logits + vocabulary);
    double sum = 0;
    for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(logits[v] - largest);
    return largest + std::log(sum) - logits[target];
}

}  // namespace

TEST_CASE("gradients predict how the loss changes along a direction", "[transformer][device]") {
    const ModelConfig configs[] = {tiny_config(), tiny_other_config()};
    for (const BackendUnderTest& device : backends_under_test(DType::float32))
        for (const ModelConfig& config : configs) {
            TinyModel tiny(*device.backend, DType::float32, {}, 3, config);
            const Tokens tokens = tiny.tokens(3, 11);
            tiny.train(tokens);
            Random random(5);
            for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
                const Parameter& parameter = tiny.parameters().all()[i];
                const Array weights = tiny.read(parameter.rows.master, parameter.rows.elements());
                const Array gradient = tiny.gradient(i);
                // Half along the gradient, so that the change is large, half anywhere, so that no part can hide.
                Array direction = random.normals(parameter.rows.elements());
                const double gradient_norm = norm(gradient), random_norm = norm(direction);
                REQUIRE(gradient_norm > 0);
                double predicted = 0;
                for (size_t j = 0; j < direction.size(); ++j) {
                    direction[j] = gradient[j] / gradient_norm + direction[j] / random_norm;
                    predicted += direction[j] * gradient[j];
                }
                const auto slope = [&](double step) {
                    double change[2];
                    for (int side = 0; side < 2; ++side) {
                        Array moved = weights;
                        for (size_t j = 0; j < moved.size(); ++j)
                            moved[j] += (side ? step : -step) * direction[j];
                        tiny.write(parameter.rows.master, moved);
                        tiny.parameters().quantize(*device.backend);
                        change[side] = loss_of(tiny, tokens);
                    }
                    tiny.write(parameter.rows.master, weights);
                    return (change[1] - change[0]) / (2 * step);
                };
                const double step = std::min(0.02 / gradient_norm, 0.02 * norm(weights));
                const double coarse = slope(step), fine = slope(step / 2);
                INFO(device.name << ", " << parameter.name << ": predicted " << predicted << ", measured "
                                 << coarse << " and, with half the step, " << fine);
                CHECK(std::abs(coarse - fine) < 1e-2 * gradient_norm);
                CHECK(std::abs((4 * fine - coarse) / 3 - predicted) < 5e-3 * gradient_norm);
            }
        }
}

TEST_CASE("two micro-batches accumulate to the gradients of one batch", "[transformer][device]") {
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const QuantizationConfig& quantization :
                 {QuantizationConfig{}, QuantizationConfig{4, 0}, QuantizationConfig{1.58, 8}}) {
                const ModelConfig config = quantization.bits == 4 ? tiny_other_config() : tiny_config();
                TinyModel whole(*device.backend, dtype, quantization, 4, config);
                TinyModel half(*device.backend, dtype, quantization, 2, config);
                const Tokens tokens = whole.tokens(4, 3);
                whole.train(tokens);
                half.train(half.tokens(2, 99));  // the next step must overwrite this one's gradients
                half.train(tokens, 2);
                const double tolerance = dtype == DType::float32 ? 1e-5 : 1e-2;
                CHECK(half.model.loss() == Approx(whole.model.loss()).epsilon(tolerance));
                for (size_t i = 0; i < whole.parameters().all().size(); ++i) {
                    INFO(device.name << ", " << name_of(dtype) << ", " << quantization.bits << " bits, "
                                     << whole.parameters().all()[i].name);
                    const Array expected = whole.gradient(i);
                    CHECK(distance(half.gradient(i), expected) <= tolerance * norm(expected));
                }
            }
}

TEST_CASE("losses and gradients do not depend on how many rows of logits there are at a time",
          "[transformer][device]") {
    constexpr int64_t batch = 3;
    const int64_t T = tiny_config().sequence_length, rows = batch * T, V = tiny_config().vocabulary;
    Random random(41);
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const QuantizationConfig& quantization : {QuantizationConfig{}, QuantizationConfig{4, 0}}) {
                TinyModel whole(*device.backend, dtype, quantization, batch, tiny_config(), {rows});
                const uint64_t seed = static_cast<uint64_t>(random.integer(0, 1 << 30));
                const Tokens tokens = whole.tokens(2 * batch, seed);
                whole.train(tokens, 2);
                const double trained = whole.model.loss(), evaluated = loss_of(whole, tokens);
                std::vector<float> expected_logits(T * V), logits(T * V);
                whole.model.logits(tokens.inputs.data(), 0, T, expected_logits.data());
                for (int64_t chunk : {int64_t{1}, random.integer(2, rows - 1), rows + 1000}) {
                    INFO(device.name << ", " << name_of(dtype) << ", " << quantization.bits << " bits, seed "
                                     << seed << ", " << chunk << " rows at a time");
                    TinyModel chunked(*device.backend, dtype, quantization, batch, tiny_config(), {chunk});
                    chunked.train(chunked.tokens(batch, 99));  // the next step must overwrite its gradients
                    chunked.train(tokens, 2);
                    const double tolerance = dtype == DType::float32 ? 1e-5 : 1e-2;
                    CHECK(chunked.model.loss() == Approx(trained).epsilon(tolerance));
                    CHECK(loss_of(chunked, tokens) == Approx(evaluated).epsilon(tolerance));
                    for (size_t i = 0; i < whole.parameters().all().size(); ++i) {
                        INFO(whole.parameters().all()[i].name);
                        const Array expected = whole.gradient(i);
                        CHECK(distance(chunked.gradient(i), expected) <= tolerance * norm(expected));
                    }
                    chunked.model.logits(tokens.inputs.data(), 0, T, logits.data());
                    const Array all(expected_logits.begin(), expected_logits.end());
                    CHECK(distance(Array(logits.begin(), logits.end()), all) <= tolerance * norm(all));
                }
            }
}

// Half a unit in the last place of a bfloat16 logit is 2^-8 of it: its loss and what depends on it may be off by as much.
TEST_CASE("logits in bfloat16 are those in float32, rounded, in loss, gradients and text",
          "[transformer][device]") {
    constexpr int64_t batch = 3;
    const int64_t T = tiny_config().sequence_length, V = tiny_config().vocabulary;
    Random random(44);
    const DType type = DType::bfloat16;
    for (const BackendUnderTest& device : backends_under_test(type))
        for (const QuantizationConfig& quantization : {QuantizationConfig{}, QuantizationConfig{4, 0}}) {
            const int64_t rows = random.integer(1, batch * T);
            const uint64_t seed = static_cast<uint64_t>(random.integer(0, 1 << 30));
            INFO(device.name << ", " << quantization.bits << " bits, seed " << seed << ", " << rows
                             << " rows at a time");
            TinyModel wide(*device.backend, type, quantization, batch, tiny_config(), {rows});
            TinyModel narrow(*device.backend, type, quantization, batch, tiny_config(), {rows, type});
            CHECK(narrow.model.memory_bytes() < wide.model.memory_bytes());
            const Tokens tokens = wide.tokens(batch, seed);
            std::vector<float> expected(T * V), logits(T * V);
            wide.model.logits(tokens.inputs.data(), 0, T, expected.data());
            narrow.model.logits(tokens.inputs.data(), 0, T, logits.data());
            if (!quantization.enabled()) {
                const Array exact(expected.begin(), expected.end());
                CHECK(inequality(Array(logits.begin(), logits.end()), reference::rounded(type, exact)) == "");
            }
            for (int64_t i = 0; i < T * V; ++i)  // with scales, once more rounded in float32
                CHECK(std::abs(logits[i] - expected[i]) <= std::abs(expected[i]) * (0x1p-8 + 0x1p-22));

            narrow.train(narrow.tokens(batch, 99));  // the next step must overwrite its gradients
            wide.train(tokens);
            narrow.train(tokens);
            CHECK(narrow.model.loss() == Approx(wide.model.loss()).epsilon(2e-3));
            CHECK(narrow.model.loss() != wide.model.loss());
            CHECK(loss_of(narrow, tokens) == Approx(narrow.model.loss()).epsilon(1e-6));
            for (size_t i = 0; i < wide.parameters().all().size(); ++i) {
                INFO(wide.parameters().all()[i].name);
                const Array gradient = wide.gradient(i);
                CHECK(distance(narrow.gradient(i), gradient) <= 2e-2 * norm(gradient));
            }
        }
    CHECK_THROWS_AS(
        TinyModel(*backends_under_test()[0].backend, DType::float32, {}, 1, tiny_config(), {0, type}),
        std::logic_error);
}

TEST_CASE("a step has the same bits on any number of threads, and again", "[transformer][device]") {
    SameBits same;
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const QuantizationConfig& quantization :
                 {QuantizationConfig{}, QuantizationConfig{1, 0}, QuantizationConfig{4, 0},
                  QuantizationConfig{4, 8}})
                for (int repetition = 0; repetition < 2; ++repetition) {
                    const bool other = quantization.bits == 4 && quantization.group == 0;
                    TinyModel tiny(*device.backend, dtype, quantization, 4,
                                   other ? tiny_other_config() : tiny_config());
                    Optimizer optimizer(*device.backend, tiny.parameters(), {});
                    Array seen;
                    for (int step = 0; step < 2; ++step) {
                        tiny.train(tiny.tokens(8, step), 2);
                        seen.push_back(tiny.model.loss());
                        seen.push_back(optimizer.finish_gradients());
                        for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
                            const Array gradient = tiny.gradient(i);
                            seen.insert(seen.end(), gradient.begin(), gradient.end());
                        }
                        optimizer.step(1e-2);
                    }
                    const std::string label = std::string(name_of(dtype)) + ", " +
                                              std::to_string(quantization.bits) + " bits, groups of " +
                                              std::to_string(quantization.group);
                    INFO(device.name << ", " << label);
                    CHECK(same.check(device, label, seen).empty());
                }
}

TEST_CASE("evaluate gives the loss of training, and the mean over sequences", "[transformer][device]") {
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype)) {
            INFO(device.name << ", " << name_of(dtype));
            TinyModel tiny(*device.backend, dtype, {4, 0}, 3);
            const Tokens tokens = tiny.tokens(3, 17);
            tiny.train(tokens);
            const double trained = tiny.model.loss();
            CHECK(loss_of(tiny, tokens) == trained);
            const int64_t T = tiny.model.config().sequence_length;
            double mean = 0;
            for (int64_t b = 0; b < 3; ++b)
                mean += tiny.model.evaluate(&tokens.inputs[b * T], &tokens.targets[b * T], 1) / 3;
            CHECK(mean == Approx(trained).epsilon(dtype == DType::float32 ? 1e-6 : 1e-3));
        }
}

TEST_CASE("a model for inference has the losses of one for training, position by position, in less memory",
          "[transformer][device]") {
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype))
            for (const ModelConfig& config : {tiny_config(), tiny_other_config()}) {
                INFO(device.name << ", " << name_of(dtype));
                const QuantizationConfig quantization{3, 0};
                TinyModel tiny(*device.backend, dtype, quantization, 2, config);
                Transformer inference(*device.backend, config, quantization, dtype, 2, {}, {},
                                      ModelUse::inference);
                CHECK(inference.memory_bytes() < tiny.model.memory_bytes() * 2 / 3);
                inference.allocate();
                Parameters& parameters = inference.parameters();
                parameters.use_quantization(true);
                for (size_t i = 0; i < parameters.all().size(); ++i) {
                    const ParameterRows &from = tiny.parameters().all()[i].rows,
                                        &to = parameters.all()[i].rows;
                    tiny.write(to.master, tiny.read(from.master, from.elements()));
                    if (from.scales() > 0) tiny.write(to.scale, tiny.read(from.scale, from.scales()));
                }
                parameters.quantize(*device.backend);
                const Tokens tokens = tiny.tokens(2, 71);
                const double loss = loss_of(tiny, tokens);
                CHECK(inference.evaluate(tokens.inputs.data(), tokens.targets.data(), 2) == loss);
                std::vector<float> losses(tokens.inputs.size());
                inference.token_losses(tokens.inputs.data(), tokens.targets.data(), 2, config.sequence_length,
                                       losses.data());
                CHECK(std::accumulate(losses.begin(), losses.end(), 0.0) / losses.size() ==
                      Approx(loss).epsilon(1e-6));
                std::vector<float> begin(3);
                inference.token_losses(tokens.inputs.data(), tokens.targets.data(), 1, 3, begin.data());
                for (int t = 0; t < 3; ++t)
                    CHECK(begin[t] == Approx(losses[t]).epsilon(dtype == DType::float32 ? 1e-5 : 2e-2));
                std::vector<float> logits(config.vocabulary);
                inference.logits(tokens.inputs.data(), 4, 5, logits.data());
                CHECK(losses[4] == Approx(cross_entropy(logits.data(), config.vocabulary, tokens.targets[4]))
                                       .epsilon(dtype == DType::float32 ? 1e-5 : 2e-2));
            }
}

TEST_CASE("logits agree with each other and with the loss", "[transformer][device]") {
    ModelConfig config = tiny_config();
    config.sequence_length = 70;  // longer than the steps in which logits() pads
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype)) {
            TinyModel tiny(*device.backend, dtype, {4, 0}, 2, config);
            const int64_t T = config.sequence_length, V = config.vocabulary;
            const double tolerance = dtype == DType::float32 ? 1e-5 : 2e-2;
            const Tokens tokens = tiny.tokens(1, 23);
            std::vector<float> all(T * V), next(V);
            tiny.model.logits(tokens.inputs.data(), 0, T, all.data());
            double loss = 0;
            for (int64_t t = 0; t < T; ++t) loss += cross_entropy(&all[t * V], V, tokens.targets[t]) / T;
            CHECK(tiny.model.evaluate(tokens.inputs.data(), tokens.targets.data(), 1) ==
                  Approx(loss).epsilon(0.1 * tolerance));
            for (int64_t positions : {1, 2, 63, 64, 65, 70}) {
                INFO(device.name << ", " << name_of(dtype) << ", " << positions << " positions");
                tiny.model.logits(tokens.inputs.data(), positions - 1, positions, next.data());
                const float* row = &all[(positions - 1) * V];
                const Array expected(row, row + V);
                CHECK(distance(Array(next.begin(), next.end()), expected) <= tolerance * norm(expected));
                std::vector<float> some(positions * V);
                tiny.model.logits(tokens.inputs.data(), 0, positions, some.data());
                CHECK(distance(Array(some.begin(), some.end()),
                               Array(all.begin(), all.begin() + positions * V)) <=
                      tolerance * norm(Array(some.begin(), some.end())));
            }
        }
}

TEST_CASE("a token changes no logits before it, and all behind it", "[transformer][device]") {
    for (DType dtype : compute_types())
        for (const BackendUnderTest& device : backends_under_test(dtype)) {
            TinyModel tiny(*device.backend, dtype, {}, 1);
            const int64_t T = tiny.model.config().sequence_length, V = tiny.model.config().vocabulary;
            Tokens tokens = tiny.tokens(1, 31);
            std::vector<float> before(T * V), after(T * V);
            tiny.model.logits(tokens.inputs.data(), 0, T, before.data());
            for (int64_t changed = 0; changed < T; ++changed) {
                INFO(device.name << ", " << name_of(dtype) << ", token " << changed);
                std::vector<int32_t> inputs = tokens.inputs;
                inputs[changed] = static_cast<int32_t>((inputs[changed] + 1) % V);
                tiny.model.logits(inputs.data(), 0, T, after.data());
                CHECK(std::equal(before.begin(), before.begin() + changed * V, after.begin()));
                for (int64_t t = changed; t < T; ++t)
                    CHECK_FALSE(std::equal(&before[t * V], &before[t * V] + V, &after[t * V]));
            }
        }
}

TEST_CASE("the model refuses more than it has room for", "[transformer][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        TinyModel tiny(*device.backend, DType::float32, {}, 2);
        const Tokens tokens = tiny.tokens(3, 1);
        const int64_t T = tiny.model.config().sequence_length;
        std::vector<float> logits((T + 1) * tiny.model.config().vocabulary);
        CHECK(contract_violation("Transformer", [&] {
                  tiny.model.evaluate(tokens.inputs.data(), tokens.targets.data(), 3);
              }).empty());
        CHECK(contract_violation("Transformer", [&] {
                  tiny.model.logits(tokens.inputs.data(), 0, T + 1, logits.data());
              }).empty());
        CHECK(contract_violation("Transformer", [&] {
                  tiny.model.logits(tokens.inputs.data(), 1, 1, logits.data());
              }).empty());
        CHECK(contract_violation("Transformer", [&] {
                  tiny.model.logits(tokens.inputs.data(), -1, 1, logits.data());
              }).empty());
    }
}
