// Names, shapes, first values and memory of the model's parameters.
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/files.h"
#include "test/support/tiny_model.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Sample {
    double mean = 0, deviation = 0, kurtosis = 0, within_one_deviation = 0;
    explicit Sample(const Array& values) {
        const double n = static_cast<double>(values.size());
        for (double v : values) mean += v / n;
        double fourth = 0;
        for (double v : values) {
            deviation += (v - mean) * (v - mean) / n;
            fourth += std::pow(v - mean, 4) / n;
        }
        kurtosis = fourth / (deviation * deviation);
        deviation = std::sqrt(deviation);
        for (double v : values) within_one_deviation += (std::abs(v - mean) < deviation) / n;
    }
};

ModelConfig wider_config() {
    ModelConfig config = tiny_config();
    config.layers = 3;
    config.width = 64;
    config.head_dim = 16;
    config.ffn = 176;
    config.vocabulary = 301;
    return config;
}

// All weights of a new model.
std::vector<Array> initial_weights(Backend& backend, uint64_t seed, int64_t batch = 1) {
    Transformer model(backend, wider_config(), {}, DType::float32, batch);
    model.allocate();
    model.parameters().initialize(backend, seed);
    std::vector<Array> weights;
    for (const Parameter& parameter : model.parameters().all()) {
        std::vector<float> values(parameter.rows.elements());
        backend.copy_to_host(values.data(), parameter.rows.master,
                             static_cast<int64_t>(values.size() * sizeof(float)));
        weights.emplace_back(values.begin(), values.end());
    }
    return weights;
}

}  // namespace

TEST_CASE("parameters have Hugging Face's names and shapes", "[parameters][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        const ModelConfig config = tiny_config();
        TinyModel tiny(*device.backend, DType::float32, {2, 8}, 1);
        std::map<std::string, std::pair<int64_t, int64_t>> expected = {
            {"model.embed_tokens.weight", {53, 24}}, {"model.norm.weight", {1, 24}}};
        for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
            expected[layer + "input_layernorm.weight"] = {1, 24};
            expected[layer + "self_attn.q_proj.weight"] = {24, 24};
            expected[layer + "self_attn.k_proj.weight"] = {12, 24};
            expected[layer + "self_attn.v_proj.weight"] = {12, 24};
            expected[layer + "self_attn.o_proj.weight"] = {24, 24};
            expected[layer + "post_attention_layernorm.weight"] = {1, 24};
            expected[layer + "mlp.gate_proj.weight"] = {40, 24};
            expected[layer + "mlp.up_proj.weight"] = {40, 24};
            expected[layer + "mlp.down_proj.weight"] = {24, 40};
        }
        std::map<std::string, std::pair<int64_t, int64_t>> found;
        std::set<const float*> places;
        int64_t elements = 0;
        REQUIRE(tiny.parameters().rows().size() == tiny.parameters().all().size());
        for (size_t i = 0; i < tiny.parameters().all().size(); ++i) {
            const Parameter& parameter = tiny.parameters().all()[i];
            const ParameterRows& rows = parameter.rows;
            INFO(parameter.name);
            found[parameter.name] = {rows.rows, rows.columns};
            elements += rows.elements();
            CHECK(tiny.parameters().rows()[i].master == rows.master);
            CHECK(places.insert(rows.master).second);
            const bool is_norm = rows.rows == 1;
            CHECK(parameter.is_vector == is_norm);
            CHECK(rows.decay == !is_norm);
            CHECK((rows.compute == nullptr) == is_norm);
            CHECK(rows.scales() == (is_norm ? 0 : rows.elements() / 8));
            CHECK(parameter.bits == (is_norm ? 16 : parameter.name == "model.embed_tokens.weight" ? 4 : 2));
        }
        CHECK(found == expected);
        CHECK(elements == parameter_count(config));
        // Query, key and value stand in one matrix, one below the other; so do gate and up.
        const LayerWeights& layer = tiny.parameters().layers[1];
        CHECK(layer.qkv.compute.rows == 24 + 12 + 12);
        CHECK(layer.gate_up.compute.rows == 40 + 40);
        for (const Parameter& parameter : tiny.parameters().all()) {
            if (parameter.rows.compute == &layer.qkv.compute)
                CHECK(parameter.rows.gradient ==
                      layer.qkv.gradient.as<float>() + parameter.rows.first_row * 24);
            if (parameter.name == "model.layers.1.self_attn.v_proj.weight")
                CHECK(parameter.rows.first_row == 36);
        }
    }
}

TEST_CASE("what imported models have besides has Hugging Face's names too", "[parameters][device]") {
    const ModelConfig config = tiny_other_config();
    const std::unique_ptr<Backend> cpu = make_cpu_backend(1);
    TinyModel tiny(*cpu, DType::float32, {2, 8}, 1, config);
    std::map<std::string, std::pair<int64_t, int64_t>> vectors;
    int64_t elements = 0;
    for (const Parameter& parameter : tiny.parameters().all()) {
        elements += parameter.rows.elements();
        if (parameter.name.find("layers.1.self_attn") != std::string::npos && parameter.is_vector)
            vectors[parameter.name.substr(25)] = {parameter.rows.rows, parameter.rows.columns};
        CHECK(parameter.rows.decay == !parameter.is_vector);
    }
    CHECK(elements == parameter_count(config));
    CHECK(vectors == std::map<std::string, std::pair<int64_t, int64_t>>{{"q_proj.bias", {1, 40}},
                                                                        {"k_proj.bias", {1, 20}},
                                                                        {"v_proj.bias", {1, 20}},
                                                                        {"q_norm.weight", {1, 10}},
                                                                        {"k_norm.weight", {1, 10}}});
    const Parameter& head = tiny.parameters().all().back();
    CHECK(head.name == "lm_head.weight");
    CHECK(head.bits == 4);
    CHECK(head.rows.compute == &tiny.parameters().output_head().compute);
    CHECK(head.layer == -1);
    // Biases stand one behind the other, as the operation reads them.
    const LayerWeights& layer = tiny.parameters().layers[1];
    CHECK(layer.qkv_bias.master.elements() == 80);
    for (const Parameter& parameter : tiny.parameters().all())
        if (parameter.name == "model.layers.1.self_attn.v_proj.bias") {
            CHECK(parameter.rows.master == layer.qkv_bias.master.as<float>() + 60);
            CHECK(parameter.rows.gradient == layer.qkv_bias.gradient.as<float>() + 60);
        }
    tiny.parameters().initialize(*cpu, 3);
    for (const float *bias = layer.qkv_bias.master.as<float>(), *end = bias + 80; bias != end; ++bias)
        CHECK(*bias == 0);
}

TEST_CASE("a new model's weights are normal, norms are one", "[parameters][device]") {
    const BackendUnderTest device = backends_under_test(DType::float32)[0];
    Transformer model(*device.backend, wider_config(), {}, DType::float32, 1);
    const std::vector<Array> weights = initial_weights(*device.backend, 42);
    for (size_t i = 0; i < weights.size(); ++i) {
        const std::string& name = model.parameters().all()[i].name;
        INFO(name);
        if (model.parameters().all()[i].is_vector) {
            CHECK(weights[i] == Array(64, 1.0));
            continue;
        }
        const bool to_residual =
            name.find("o_proj") != std::string::npos || name.find("down") != std::string::npos;
        const double deviation = to_residual ? 0.02 / std::sqrt(6.0) : 0.02;
        const double n = static_cast<double>(weights[i].size());
        const Sample sample(weights[i]);
        // Five standard errors of each statistic of a normal distribution.
        CHECK(std::abs(sample.mean) < 5 * deviation / std::sqrt(n));
        CHECK(std::abs(sample.deviation / deviation - 1) < 5 / std::sqrt(2 * n));
        CHECK(std::abs(sample.kurtosis - 3) < 5 * std::sqrt(24 / n));
        CHECK(std::abs(sample.within_one_deviation - 0.6827) < 5 * std::sqrt(0.6827 * 0.3173 / n));
        // Not the same stream as its neighbours, nor a shifted copy of itself.
        double lagged = 0, crossed = 0;
        const Array& other = weights[i == 0 ? 2 : 0];
        for (size_t j = 1; j < weights[i].size(); ++j) {
            lagged += weights[i][j] * weights[i][j - 1] / (deviation * deviation);
            crossed += weights[i][j] * other[j % other.size()] / (deviation * 0.02);
        }
        CHECK(std::abs(lagged) < 5 * std::sqrt(n));
        CHECK(std::abs(crossed) < 15 * std::sqrt(n));
    }
}

TEST_CASE("first weights depend on the seed and nothing else", "[parameters][device]") {
    const std::vector<BackendUnderTest> devices = backends_under_test(DType::float32);
    const std::vector<Array> first = initial_weights(*devices[0].backend, 42);
    for (const BackendUnderTest& device : devices) {
        INFO(device.name);
        CHECK(initial_weights(*device.backend, 42) == first);
        CHECK(initial_weights(*device.backend, 42, 5) == first);
    }
    std::set<double> seen;
    for (uint64_t seed = 0; seed < 50; ++seed)
        for (const Array& weights : initial_weights(*devices[0].backend, seed))
            if (weights[0] != 1.0) CHECK(seen.insert(weights[0]).second);
}

TEST_CASE("a process draws the rows that it keeps", "[parameters][device]") {
    const std::vector<BackendUnderTest> devices = backends_under_test(DType::float32);
    const std::vector<Array> whole = initial_weights(*devices[0].backend, 42);
    for (const BackendUnderTest& device : devices) {
        for (bool narrow : {false, true}) {
            if (narrow && device.is_cpu()) continue;
            std::vector<Array> together(whole.size());
            for (int part = 0; part < 3; ++part) {
                QuantizationConfig quantization;
                if (narrow) quantization.master_type = DType::bfloat16;
                Transformer model(*device.backend, wider_config(), quantization, DType::float32, 1,
                                  {part, 3});
                model.allocate();
                model.parameters().initialize(*device.backend, 42);
                for (size_t i = 0; i < whole.size(); ++i) {
                    const Parameter& parameter = model.parameters().all()[i];
                    const ParameterRows& kept = parameter.rows;
                    if (parameter.is_vector) {
                        if (part == 0) together[i] = Array(64, 1.0);
                        continue;
                    }
                    const size_t count = static_cast<size_t>(kept.elements());
                    std::vector<float> values(count);
                    std::vector<bfloat16> rounded(count);
                    if (narrow) {
                        device.backend->copy_to_host(rounded.data(), kept.narrow_master, 2 * kept.elements());
                        std::copy(rounded.begin(), rounded.end(), values.begin());
                    } else {
                        device.backend->copy_to_host(values.data(), kept.master, 4 * kept.elements());
                    }
                    together[i].insert(together[i].end(), values.begin(), values.end());
                }
            }
            for (size_t i = 0; i < whole.size(); ++i) {
                INFO(device.name << ", narrow " << narrow << ", " << i);
                CHECK(together[i] == (narrow ? reference::rounded(DType::bfloat16, whole[i]) : whole[i]));
            }
        }
    }
}

TEST_CASE("a group that does not divide the rows is refused", "[parameters][device]") {
    Backend& backend = *backends_under_test(DType::float32)[0].backend;
    const auto construct = [&](const QuantizationConfig& quantization) {
        return error_of([&] { Transformer(backend, tiny_config(), quantization, DType::float32, 1); });
    };
    const std::string error = construct({4, 16});
    CHECK_THAT(error, contains_text("-group 16") && contains_text("24") && contains_text("multiple"));
    CHECK(error.find('\n') == std::string::npos);
    CHECK_THAT(construct({4, 24}), contains_text("-group 24") && contains_text("40"));
    CHECK(construct({4, 8}).empty());
    CHECK(construct({16, 16}).empty());
    CHECK_THAT(construct({7, 0}), contains_text("-b") && contains_text("7 bits"));
}

TEST_CASE("memory is known before it is taken", "[parameters][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        Backend& backend = *device.backend;
        // Weights, gradients and two moments for each parameter and, quantized, for each scale.
        Transformer model(backend, wider_config(), {}, DType::float32, 1);
        Transformer quantized(backend, wider_config(), {4, 16}, DType::float32, 1);
        Transformer larger(backend, wider_config(), {}, DType::float32, 101);
        const int64_t parameters = parameter_count(wider_config());
        CHECK(model.memory_bytes() > 16 * parameters);
        CHECK(model.memory_bytes() < 32 * parameters);
        const int64_t matrices = parameters - 7 * 64;
        CHECK(quantized.memory_bytes() - model.memory_bytes() >= 16 * matrices / 16);
        CHECK(quantized.memory_bytes() - model.memory_bytes() < 16 * matrices / 16 + 4 * 22 * 256);
        // Per layer and row, in floats: two residuals and two norms of C, qkv, attention, gate and up,
        // hidden.
        const int64_t saved = 3 * 4 * (4 * 64 + 128 + 64 + 3 * 176) * 9;
        CHECK(larger.memory_bytes() - model.memory_bytes() > 100 * saved);
        CHECK(larger.memory_bytes() - model.memory_bytes() < 200 * saved);
        const std::string table = model.memory_table();
        for (const char* word :
             {"master weights", "gradients", "moments", "activations", "workspace", "total"})
            CHECK_THAT(table, contains_text(word));

        // Logits and their gradient, in one place as both are float32, as many rows as asked for or as there are.
        const auto bytes_with = [&](int64_t logit_rows) {
            return Transformer(backend, wider_config(), {}, DType::float32, 101, {}, {logit_rows})
                .memory_bytes();
        };
        const auto rounded = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
        const int64_t rows = 101 * wider_config().sequence_length, vocabulary = wider_config().vocabulary;
        const int64_t one_row = bytes_with(1);
        for (int64_t asked :
             {int64_t{2}, int64_t{127}, int64_t{512}, rows - 1, rows, rows + 1, int64_t{1} << 40}) {
            INFO(asked << " rows of logits");
            const int64_t bytes = 4 * vocabulary * std::min(asked, rows);
            CHECK(bytes_with(asked) - one_row == rounded(bytes) - rounded(4 * vocabulary));
        }
        CHECK(larger.memory_bytes() ==
              bytes_with(backend.preferred_logit_rows(rows, vocabulary, DType::float32)));

        Transformer too_large(backend, wider_config(), {}, DType::float32, int64_t{1} << 32);
        REQUIRE(too_large.memory_bytes() > backend.available_memory());
        const std::string error = error_of([&] { too_large.allocate(); });
        CHECK_THAT(error,
                   contains_text("not enough memory") && contains_text("GiB") && contains_text("-batch"));
        CHECK(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("what the memory table says is taken, no more", "[parameters][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        Backend& backend = *device.backend;
        // A CPU's memory is also other processes', a GPU gives whole pages.
        if (device.is_cpu() || !backend.host_addressable()) continue;
        for (int64_t logit_rows : {0, 1, 37, 1000}) {
            INFO(device.name << ", -logit_rows " << logit_rows);
            Transformer model(backend, wider_config(), {4, 16}, DType::float32, 7, {}, {logit_rows});
            const int64_t before = backend.available_memory();
            model.allocate();
            CHECK(before - backend.available_memory() == model.memory_bytes());
            const int64_t rows = 7 * wider_config().sequence_length;
            const std::string shown = std::to_string(logit_rows == 0 ? rows : std::min(logit_rows, rows)) +
                                      (logit_rows == 1 ? " row" : " rows") + " of logits and their gradient";
            CHECK_THAT(model.memory_table(), contains_text(shown));
        }
    }
}

TEST_CASE("where fewer rows of logits would fit, the error says how many", "[parameters][device]") {
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        Backend& backend = *device.backend;
        ModelConfig config = tiny_config();
        config.vocabulary = 200'003;
        // Logits, a little more than there is.
        const int64_t rows = backend.available_memory() / (4 * config.vocabulary) + 100;
        const int64_t batch = rows / config.sequence_length + 1;
        Transformer too_large(backend, config, {}, DType::float32, batch, {}, {rows});
        const std::string error = error_of([&] { too_large.allocate(); });
        CHECK_THAT(error, contains_text("not enough memory") && contains_text("-logit_rows ") &&
                              contains_text("would fit"));
        const size_t place = error.find("-logit_rows ");
        REQUIRE(place != std::string::npos);
        const int64_t advised = std::stoll(error.substr(place + 12));
        CHECK(advised < rows);
        CHECK(Transformer(backend, config, {}, DType::float32, batch, {}, {advised}).memory_bytes() <
              backend.available_memory());
    }
}
