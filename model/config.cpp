#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/units.h"

namespace train_qat {
namespace {

std::string percent(double part, double whole) {
    return formatted("%.1f%%", 100.0 * part / whole);
}

double rope_frequency(const ModelConfig& config, int64_t pair) {
    const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(config.head_dim);
    const double frequency = std::pow(config.rope_theta, exponent);
    const RopeScaling& scaling = config.rope_scaling;
    if (scaling.original_positions == 0) return frequency;
    // Turns over the length that the model was first trained on.
    const double turns = static_cast<double>(scaling.original_positions) * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((turns - scaling.low_frequency_factor) /
                                       (scaling.high_frequency_factor - scaling.low_frequency_factor),
                                   0.0, 1.0);
    return kept * frequency + (1 - kept) * frequency / scaling.factor;
}

}  // namespace

int64_t embedding_parameter_count(const ModelConfig& config) {
    return (config.tied ? 1 : 2) * config.vocabulary * config.width;
}

int64_t linear_parameter_count(const ModelConfig& config) {
    const int64_t query_and_output = 2 * config.heads * config.head_dim * config.width;
    const int64_t key_and_value = 2 * config.kv_heads * config.head_dim * config.width;
    return config.layers * (query_and_output + key_and_value + 3 * config.ffn * config.width);
}

int64_t vector_parameter_count(const ModelConfig& config) {
    int64_t of_layer = 2 * config.width;
    if (config.attention_biases) of_layer += (config.heads + 2 * config.kv_heads) * config.head_dim;
    if (config.head_norms) of_layer += 2 * config.head_dim;
    return config.layers * of_layer + config.width;
}

int64_t parameter_count(const ModelConfig& config) {
    return embedding_parameter_count(config) + linear_parameter_count(config) +
           vector_parameter_count(config);
}

void rotations(const ModelConfig& config, float* cosines, float* sines) {
    const int64_t half = config.head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
        const double frequency = rope_frequency(config, i);
        for (int64_t t = 0; t < config.sequence_length; ++t) {
            const double angle = static_cast<double>(t) * frequency;
            cosines[t * half + i] = static_cast<float>(std::cos(angle));
            sines[t * half + i] = static_cast<float>(std::sin(angle));
        }
    }
}

double forward_flops_per_token(const ModelConfig& config) {
    const double weights = static_cast<double>(linear_parameter_count(config)) +
                           static_cast<double>(config.vocabulary * config.width);
    const double attended = static_cast<double>(config.sequence_length) / 2.0;
    return 2.0 * weights +
           4.0 * static_cast<double>(config.layers * config.heads * config.head_dim) * attended;
}

double training_flops_per_token(const ModelConfig& config) {
    return 3.0 * forward_flops_per_token(config);
}

std::string describe(const ModelConfig& config) {
    const auto total = static_cast<double>(parameter_count(config));
    const auto embedding = static_cast<double>(embedding_parameter_count(config));
    const auto linears = static_cast<double>(linear_parameter_count(config));
    const auto row = [](const char* name, const std::string& value) {
        return formatted("  %-16s %s\n", name, value.c_str());
    };
    std::string text = "model " + config.name;
    if (config.requested_parameters > 0) {
        const double deviation = total / static_cast<double>(config.requested_parameters) - 1.0;
        text += formatted(" (%+.2f%% of the size asked for%s)", 100.0 * deviation,
                          std::abs(deviation) > size_tolerance
                              ? ", the nearest that the vocabulary and the fixed "
                                "values permit"
                              : "");
    }
    text += "\n";
    text += row("layers", std::to_string(config.layers));
    text += row("width", std::to_string(config.width));
    text += row("heads", std::to_string(config.heads) + " x " + std::to_string(config.head_dim));
    text += row("kv heads", std::to_string(config.kv_heads));
    text += row("ffn", std::to_string(config.ffn));
    text += row("vocabulary", std::to_string(config.vocabulary));
    text += row("sequence length", std::to_string(config.sequence_length));
    text += row("parameters",
                format_exact(parameter_count(config)) + " (" + format_count(parameter_count(config)) + ")");
    text += row("  embedding", format_exact(embedding_parameter_count(config)) + " (" +
                                   percent(embedding, total) +
                                   (config.tied ? ", tied to the output head)" : ", with the output head)"));
    text +=
        row("  linears", format_exact(linear_parameter_count(config)) + " (" + percent(linears, total) + ")");
    text += row("training", formatted("%.3g GFLOP per token", training_flops_per_token(config) / 1e9));
    if (embedding > 0.5 * total) {
        text +=
            "  the embedding takes most of the parameters: a smaller vocabulary leaves more to the layers\n";
    }
    return text;
}

}  // namespace train_qat
