// A model that is small enough for tests, with access to its parameters from the host.
#pragma once

#include <cstdint>
#include <vector>

#include "model/transformer.h"
#include "test/support/device.h"

namespace train_qat::test {

// Odd sizes, grouped queries; groups of 8 divide every row.
inline ModelConfig tiny_config() {
    ModelConfig config;
    config.layers = 2;
    config.width = 24;
    config.heads = 4;
    config.kv_heads = 2;
    config.head_dim = 6;
    config.ffn = 40;
    config.vocabulary = 53;
    config.sequence_length = 9;
    return config;
}

// The same with all that imported models may have: biases, norms of heads, heads wider than their share of the width,
// an output head of its own, stretched rotations.
inline ModelConfig tiny_other_config() {
    ModelConfig config = tiny_config();
    config.head_dim = 10;
    config.tied = false;
    config.attention_biases = config.head_norms = true;
    config.rope_theta = 500;
    config.rope_scaling = {4.0, 1.0, 3.0, 6};
    config.norm_epsilon = 1e-3;
    return config;
}

struct Tokens {
    std::vector<int32_t> inputs, targets;  // (sequences, T)
};

struct TinyModel {
    // Weights larger than a new model's: attention is far from uniform, every gradient counts. Quantized at
    // once if `quantization` is enabled.
    TinyModel(Backend& device, DType dtype, const QuantizationConfig& quantization, int64_t batch,
              const ModelConfig& config = tiny_config(), const LogitOptions& logits = {})
        : backend(device), model(device, config, quantization, dtype, batch, {}, logits) {
        model.allocate();
        parameters().initialize(backend, 7);
        Random random(19);
        for (const Parameter& parameter : parameters().all()) {
            Array weights = read(parameter.rows.master, parameter.rows.elements());
            for (double& weight : weights)
                weight = parameter.is_vector ? 1 + 0.2 * random.normal() : 10 * weight;
            write(parameter.rows.master, weights);
        }
        if (quantization.enabled()) {
            parameters().use_quantization(true);
            parameters().initialize_scales(backend);
        }
        parameters().quantize(backend);
    }

    Parameters& parameters() { return model.parameters(); }

    Array read(const float* device_data, int64_t count) const {
        std::vector<float> values(count);
        backend.copy_to_host(values.data(), device_data, count * static_cast<int64_t>(sizeof(float)));
        return Array(values.begin(), values.end());
    }
    void write(float* device_data, const Array& values) const {
        const std::vector<float> narrow(values.begin(), values.end());
        backend.copy_to_device(device_data, narrow.data(),
                               static_cast<int64_t>(narrow.size() * sizeof(float)));
        backend.synchronize();
    }
    Array weight(size_t i) {
        return read(parameters().all()[i].rows.master, parameters().all()[i].rows.elements());
    }
    Array gradient(size_t i) {
        return read(parameters().all()[i].rows.gradient, parameters().all()[i].rows.elements());
    }

    Tokens tokens(int64_t sequences, uint64_t seed) const {
        Random random(seed);
        Tokens tokens;
        for (int64_t i = 0; i < sequences * model.config().sequence_length; ++i) {
            tokens.inputs.push_back(static_cast<int32_t>(random.integer(0, model.config().vocabulary - 1)));
            tokens.targets.push_back(static_cast<int32_t>(random.integer(0, model.config().vocabulary - 1)));
        }
        return tokens;
    }

    // Gradients and loss of micro_batches * batch sequences.
    void train(const Tokens& tokens, int64_t micro_batches = 1) {
        const int64_t stride = model.batch() * model.config().sequence_length;
        for (int64_t i = 0; i < micro_batches; ++i)
            model.train_micro_batch(&tokens.inputs[i * stride], &tokens.targets[i * stride], i,
                                    micro_batches);
    }

    Backend& backend;
    Transformer model;
};

}  // namespace train_qat::test
