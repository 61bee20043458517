// Decoder: token after token it must compute what the model computes of whole sequences.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/device_memory.h"
#include "model/generation/decoder.h"
#include "model/generation/generate.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Thread by thread, kernels take their time.
bool is_slow(const BackendUnderTest& device) {
    return device.name.starts_with("emulated");
}

// Every kind of layer that a model may have.
std::vector<ModelConfig> configs() {
    ModelConfig other = tiny_other_config();
    other.sequence_length = 80;
    return {tiny_config(), other};
}

std::vector<int32_t> random_tokens(const ModelConfig& config, int64_t count) {
    Random random(5);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i)
        tokens.push_back(static_cast<int32_t>(random.integer(0, config.vocabulary - 1)));
    return tokens;
}

// Of each position, read in pieces of at most `most` tokens; only the last of a piece has logits.
std::vector<Array> logits_in_pieces(Decoder& decoder, const std::vector<int32_t>& tokens, int64_t most) {
    std::vector<Array> logits(tokens.size());
    std::vector<float> last(static_cast<size_t>(decoder.config().vocabulary));
    decoder.forget();
    for (int64_t first = 0; first < std::ssize(tokens);) {
        const int64_t count = std::min<int64_t>(most, std::ssize(tokens) - first);
        decoder.read(std::span(tokens).subspan(first, count), last);
        first += count;
        logits[first - 1] = Array(last.begin(), last.end());
    }
    return logits;
}

double largest_distance(const Array& a, const Array& b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    return largest;
}

}  // namespace

TEST_CASE("a decoder's logits are the model's", "[decoder][generation][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32))
        for (const ModelConfig& config : configs())
            for (const QuantizationConfig& quantization : std::vector<QuantizationConfig>{
                     {}, {1, 0}, {1.58, 0}, {2, 8}, {3, 0}, {4, 0}, {4, 8}, {5, 0}, {8, 8}}) {
                // Groups divide all rows of the first form alone.
                if (quantization.group > 0 && !config.tied) continue;
                if (is_slow(device) && (config.sequence_length > 20 || std::floor(quantization.bits) != 4))
                    continue;
                INFO(device.name << ", bits " << quantization.bits << " group " << quantization.group << " T "
                                 << config.sequence_length);
                auto tiny =
                    std::make_unique<TinyModel>(*device.backend, DType::float32, quantization, 1, config);
                const int64_t T = config.sequence_length, V = config.vocabulary;
                const std::vector<int32_t> tokens = random_tokens(config, T);
                std::vector<float> expected(static_cast<size_t>(T * V));
                tiny->model.logits(tokens.data(), 0, T, expected.data());
                Decoder decoder(tiny->model);
                tiny.reset();  // it needs the model no more
                double scale = 0;
                for (float logit : expected) scale = std::max(scale, std::abs(static_cast<double>(logit)));
                for (int64_t most : {int64_t{1}, int64_t{3}, T}) {
                    const std::vector<Array> logits = logits_in_pieces(decoder, tokens, most);
                    for (int64_t t = 0; t < T; ++t) {
                        if (logits[t].empty()) continue;
                        const Array row(expected.begin() + t * V, expected.begin() + (t + 1) * V);
                        INFO("position " << t << " in pieces of " << most);
                        CHECK(largest_distance(logits[t], row) <= 3e-5 * scale);
                    }
                }
            }
}

TEST_CASE("a decoder of bfloat16 weights reads these", "[decoder][generation][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::bfloat16)) {
        INFO(device.name);
        TinyModel tiny(*device.backend, DType::bfloat16, {}, 1);
        const int64_t V = tiny.model.config().vocabulary;
        const std::vector<int32_t> tokens = random_tokens(tiny.model.config(), 5);
        std::vector<float> expected(static_cast<size_t>(V));
        tiny.model.logits(tokens.data(), 4, 5, expected.data());
        Decoder decoder(tiny.model);
        const Array logits = logits_in_pieces(decoder, tokens, 5)[4];
        double squares = 0;
        for (float logit : expected) squares += static_cast<double>(logit) * logit;
        // The model rounds its activations too.
        CHECK(largest_distance(logits, Array(expected.begin(), expected.end())) <=
              0.1 * std::sqrt(squares / static_cast<double>(V)));
    }
}

TEST_CASE("a decoder of codes is as small as its codes", "[decoder][generation]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        TinyModel tiny(*device.backend, DType::float32, {4, 0}, 1);
        const ModelConfig& config = tiny.model.config();
        const int64_t C = config.width, D = config.head_dim, qkv = (config.heads + 2 * config.kv_heads) * D;
        const auto row = [](int64_t columns) { return (columns + 31) / 32 * 16 + 4; };
        const int64_t layer = (qkv + 2 * config.ffn) * row(C) + C * (row(config.heads * D) + row(config.ffn));
        Decoder decoder(tiny.model);
        CHECK(decoder.weight_bytes() == config.layers * layer + config.vocabulary * row(C));
        CHECK(decoder.cache_bytes(4) == 5 * 2 * 4 * config.layers * config.kv_heads * D);
    }
}

TEST_CASE("a decoder says what it cannot read", "[decoder][generation]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        TinyModel tiny(*device.backend, DType::float32, {}, 1);
        Decoder decoder(tiny.model);
        std::vector<float> logits(static_cast<size_t>(tiny.model.config().vocabulary));
        const std::vector<int32_t> tokens(static_cast<size_t>(decoder.capacity()), 1);
        decoder.read(tokens, logits);
        const std::vector<int32_t> none;
        CHECK(contract_violation("Decoder", [&] { decoder.read({tokens.data(), 1}, logits); }) == "");
        decoder.forget();
        CHECK(contract_violation("Decoder", [&] { decoder.read(none, logits); }) == "");
        CHECK(contract_violation("Decoder", [&] { decoder.read(tokens, std::span(logits).first(3)); }) == "");
        CHECK(decoder.position() == 0);
    }
}

namespace {

// The likeliest tokens one after another, with the whole text read again for each: what is read begins as generate() does.
std::vector<int32_t> greedy(TinyModel& tiny, const std::vector<int32_t>& prompt, int64_t count) {
    const int64_t T = tiny.model.config().sequence_length, V = tiny.model.config().vocabulary;
    std::vector<int32_t> text = prompt;
    int64_t begin = std::ssize(text) > T ? std::ssize(text) - T / 2 : 0;
    std::vector<float> logits(static_cast<size_t>(V));
    for (int64_t i = 0; i < count; ++i) {
        if (std::ssize(text) - begin > T) begin = std::ssize(text) - T / 2;
        const int64_t positions = std::ssize(text) - begin;
        tiny.model.logits(&text[begin], positions - 1, positions, logits.data());
        text.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    }
    return {text.begin() + std::ssize(prompt), text.end()};
}

}  // namespace

TEST_CASE("generate without temperature takes the likeliest token, also beyond T", "[generation][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        TinyModel tiny(*device.backend, DType::float32, {4, 0}, 1);
        const int64_t T = tiny.model.config().sequence_length;
        Decoder decoder(tiny.model);
        const int64_t count = is_slow(device) ? T : 3 * T;
        for (int64_t length : {int64_t{3}, T, 2 * T}) {
            if (is_slow(device) && length != T) continue;
            const std::vector<int32_t> prompt = random_tokens(tiny.model.config(), length);
            GenerationOptions options;
            options.tokens = count;
            options.sampling.temperature = 0;
            std::vector<int32_t> told;
            const Generation made =
                generate(decoder, prompt, options, [&](int32_t token) { told.push_back(token); });
            CHECK(made.tokens == greedy(tiny, prompt, count));
            CHECK(told == made.tokens);
            CHECK(made.prompt_tokens == (length > T ? T / 2 : length));
            CHECK(made.steps + made.times_reread == count - 1);
            CHECK(made.times_reread > 0);
            options.sampling.seed = 77;
            CHECK(generate(decoder, prompt, options).tokens == made.tokens);
            options.sampling.temperature = 1e-6;
            CHECK(generate(decoder, prompt, options).tokens == made.tokens);
            // Stops in front of the first end token among the new ones.
            options.end_token = made.tokens[2];
            const auto first = std::find(made.tokens.begin(), made.tokens.end(), options.end_token);
            CHECK(generate(decoder, prompt, options).tokens ==
                  std::vector<int32_t>(made.tokens.begin(), first));
            options.tokens = 0;
            CHECK(generate(decoder, prompt, options).tokens.empty());
        }
        CHECK(contract_violation("generate", [&] { generate(decoder, {}, {}); }).empty());
    }
}

TEST_CASE("generate draws reproducibly, and nothing beyond its vocabulary", "[generation]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        if (is_slow(device)) continue;
        TinyModel tiny(*device.backend, DType::float32, {}, 1);
        Decoder decoder(tiny.model);
        GenerationOptions options;
        options.tokens = 60;
        options.vocabulary = 20;
        options.sampling.temperature = 2;
        const std::vector<int32_t> text = generate(decoder, {2}, options).tokens;
        CHECK(generate(decoder, {2}, options).tokens == text);
        CHECK(*std::max_element(text.begin(), text.end()) < 20);
        options.sampling.seed = 2;
        CHECK(generate(decoder, {2}, options).tokens != text);
    }
}
