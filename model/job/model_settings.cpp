#include "model/job/model_settings.h"

#include <string>

namespace train_qat {

namespace {

nlohmann::json to_json(const RopeScaling& scaling) {
    if (scaling.original_positions == 0) return nullptr;
    return {{"factor", scaling.factor},
            {"low_freq_factor", scaling.low_frequency_factor},
            {"high_freq_factor", scaling.high_frequency_factor},
            {"original_max_position_embeddings", scaling.original_positions}};
}

RopeScaling rope_scaling_of(const nlohmann::json& json) {
    if (json.is_null()) return {};
    return {json.at("factor"), json.at("low_freq_factor"), json.at("high_freq_factor"),
            json.at("original_max_position_embeddings")};
}

}  // namespace

nlohmann::ordered_json model_settings(const ModelConfig& config) {
    return {{"layers", config.layers},
            {"width", config.width},
            {"heads", config.heads},
            {"head_dim", config.head_dim},
            {"kv_heads", config.kv_heads},
            {"ffn", config.ffn},
            {"vocab", config.vocabulary},
            {"seq_len", config.sequence_length},
            {"tied", config.tied},
            {"attention_biases", config.attention_biases},
            {"head_norms", config.head_norms},
            {"rope_theta", config.rope_theta},
            {"rope_scaling", to_json(config.rope_scaling)},
            {"norm_eps", config.norm_epsilon}};
}

nlohmann::json unnamed_model_setting(const nlohmann::json& settings, const std::string& name) {
    const ModelConfig usual;
    if (name == "head_dim") return settings.at("width").get<int64_t>() / settings.at("heads").get<int64_t>();
    if (name == "layers" || name == "width") return nullptr;
    const nlohmann::json value = nlohmann::json(model_settings(usual)).value(name, nlohmann::json());
    return value.is_number_integer() ? nlohmann::json() : value;
}

ModelConfig model_of(const nlohmann::json& settings) {
    const auto setting = [&](const char* name) {
        return settings.contains(name) ? settings.at(name) : unnamed_model_setting(settings, name);
    };
    ConfigOverrides shape;
    shape.layers = setting("layers");
    shape.width = setting("width");
    shape.heads = setting("heads");
    shape.head_dim = setting("head_dim");
    shape.kv_heads = setting("kv_heads");
    shape.ffn = setting("ffn");
    shape.untied = !setting("tied").get<bool>();
    ModelConfig config = resolve_config("", setting("vocab"), setting("seq_len"), shape);
    config.attention_biases = setting("attention_biases");
    config.head_norms = setting("head_norms");
    config.rope_theta = setting("rope_theta");
    config.rope_scaling = rope_scaling_of(setting("rope_scaling"));
    config.norm_epsilon = setting("norm_eps");
    return config;
}

}  // namespace train_qat
