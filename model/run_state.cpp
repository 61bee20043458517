#include "model/run_state.h"

#include <stdexcept>

#include "model/text.h"

namespace train_qat {

namespace {

// A number that survives JSON bit by bit.
std::string text(uint64_t value) {
    return std::to_string(value);
}

nlohmann::json optional_number(const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json();
}

std::optional<double> number_at(const nlohmann::json& json, const char* key) {
    return json.contains(key) && json[key].is_number() ? std::optional<double>(json[key].get<double>())
                                                       : std::nullopt;
}

nlohmann::ordered_json losses_of(const RunResults& results) {
    return {{"full_precision_at_switch", optional_number(results.full_precision)},
            {"rounded_at_switch", optional_number(results.rounded)},
            {"quantized", optional_number(results.quantized)}};
}

}  // namespace

nlohmann::ordered_json run_settings(const Options& options, const ModelConfig& config, const Plan& plan,
                                    DType compute_type) {
    return {{"layers", config.layers},
            {"width", config.width},
            {"heads", config.heads},
            {"kv_heads", config.kv_heads},
            {"ffn", config.ffn},
            {"vocab", config.vocabulary},
            {"seq_len", config.sequence_length},
            {"b", options.bits},
            {"group", options.group},
            {"steps", plan.total_steps},
            {"qat_frac", plan.qat_fraction},
            {"fp_steps", plan.fp_steps},
            {"qat_steps", plan.qat_steps},
            {"batch", options.batch},
            {"grad_accum", options.gradient_accumulation},
            {"schedule", to_string(plan.schedule)},
            {"cooldown", to_string(plan.cooldown)},
            {"warmup_steps", plan.warmup_steps},
            {"cooldown_steps", plan.cooldown_steps},
            {"qat_warmup_steps", plan.qat_warmup_steps},
            {"qat_cooldown_steps", plan.qat_cooldown_steps},
            {"lr", plan.learning_rate},
            {"qat_lr", plan.qat_learning_rate},
            {"final_lr_frac", plan.final_learning_rate_fraction},
            {"scale_lr", options.optimizer.scale_learning_rate_factor},
            {"beta1", options.optimizer.beta1},
            {"beta2", options.optimizer.beta2},
            {"eps", options.optimizer.epsilon},
            {"weight_decay", options.optimizer.weight_decay},
            {"clip", options.optimizer.clip_norm},
            {"seed", options.seed},
            {"dtype", name_of(compute_type)},
            {"master", options.master}};
}

nlohmann::json to_json(const RunState& state, const nlohmann::ordered_json& settings,
                       uint64_t data_fingerprint) {
    return {{"settings", settings},
            {"quantized", state.quantized},
            {"optimizer_steps", state.optimizer_steps},
            {"scale_steps", state.scale_steps},
            {"loader_position", state.loader_position},
            {"data_fingerprint", text(data_fingerprint)},
            {"results", losses_of(state.results)}};
}

RunState read_run_state(const nlohmann::json& json, const nlohmann::ordered_json& settings,
                        uint64_t data_fingerprint) {
    for (const auto& [key, value] : settings.items()) {
        const nlohmann::json& saved = json.at("settings").value(key, nlohmann::json());
        if (saved != nlohmann::json(value))
            throw std::runtime_error("-resume: the checkpoint was trained with " + key + " " + saved.dump() +
                                     ", this run has " + value.dump() +
                                     "; give the flags of the first run, or start anew with another -o");
    }
    if (json.at("data_fingerprint") != text(data_fingerprint))
        throw std::runtime_error(
            "-resume: the shards of -i are not those of the checkpoint; give the same, in the same order");
    RunState state;
    state.quantized = json.at("quantized");
    state.optimizer_steps = json.at("optimizer_steps");
    state.scale_steps = json.at("scale_steps");
    state.loader_position = json.at("loader_position");
    const nlohmann::json& results = json.at("results");
    state.results.full_precision = number_at(results, "full_precision_at_switch");
    state.results.rounded = number_at(results, "rounded_at_switch");
    state.results.quantized = number_at(results, "quantized");
    return state;
}

nlohmann::ordered_json run_record(const nlohmann::ordered_json& settings, const Plan& plan,
                                  const RunResults& results, const std::string& device) {
    nlohmann::ordered_json outcome = losses_of(results);
    outcome["tokens_per_second_fp"] = results.fp_tokens_per_second;
    outcome["tokens_per_second_qat"] = results.qat_tokens_per_second;
    outcome["sample"] = results.sample;
    return {{"configuration", settings},
            {"plan",
             {{"parameters", plan.parameters},
              {"bits", plan.bits},
              {"tokens_per_step", plan.tokens_per_step},
              {"total_steps", plan.total_steps},
              {"fp_steps", plan.fp_steps},
              {"tokens_per_parameter_byte", plan.tokens_per_parameter_byte},
              {"predicted_fraction", optional_number(plan.predicted_fraction)},
              {"qat_fraction", plan.qat_fraction}}},
            {"device", device},
            {"compiler", __VERSION__},
            {"results", std::move(outcome)}};
}

std::string results_table(const RunResults& results, const Plan& plan) {
    std::string table;
    const auto loss_row = [&](const std::string& name, const std::optional<double>& loss) {
        if (!loss) return;
        table += formatted("  %-52s %8.4f\n", name.c_str(), *loss);
    };
    const auto speed_row = [&](const char* name, double tokens_per_second) {
        if (tokens_per_second <= 0) return;
        table += formatted("  %-52s %8.0f tokens/s\n", name, tokens_per_second);
    };
    const std::string bits = format_bits(plan.bits) + (plan.bits == 1 ? " bit" : " bits");
    if (results.full_precision || results.quantized) table += "validation loss\n";
    loss_row(plan.qat_steps > 0 ? "full precision, at the switch" : "full precision", results.full_precision);
    loss_row("the same model rounded to " + bits + " (no QAT)", results.rounded);
    loss_row("quantization-aware trained, " + bits, results.quantized);
    table += "speed\n";
    speed_row("full-precision steps", results.fp_tokens_per_second);
    speed_row("quantization-aware steps", results.qat_tokens_per_second);
    if (!results.sample.empty()) table += "\nsample\n" + results.sample + "\n";
    return table;
}

}  // namespace train_qat
