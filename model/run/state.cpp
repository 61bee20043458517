#include "model/run/run_state.h"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/format.h"
#include "model/plan/schedule.h"
#include "model/storage/files.h"

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

nlohmann::ordered_json bytes_of(const DataParallel::StepTraffic& traffic) {
    return {{"gradients", traffic.gradients},
            {"weights", traffic.weights},
            {"unpacked_weights", traffic.unpacked_weights}};
}

void check_settings(const nlohmann::json& saved, const nlohmann::ordered_json& settings, const char* flag,
                    const char* advice) {
    for (const auto& [key, value] : settings.items()) {
        const nlohmann::json& its = saved.value(key, nlohmann::json());
        if (its != nlohmann::json(value))
            throw std::runtime_error(std::string(flag) + ": the checkpoint was trained with " + key + " " +
                                     its.dump() + ", this run has " + value.dump() + "; " +
                                     (key == "total_batch" ? "give -total_batch " + its.dump() : advice));
    }
}

void check_data(const nlohmann::json& json, uint64_t data_fingerprint, const char* flag) {
    if (json.at("data_fingerprint") == text(data_fingerprint)) return;
    throw std::runtime_error(std::string(flag) +
                             ": the shards of -i are not those of the checkpoint; give the same, in the same "
                             "order");
}

RunState state_of(const nlohmann::json& json) {
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

// What of a plan decides its learning rates, from the settings of a run.
Plan curve_of(const nlohmann::json& settings) {
    Plan plan;
    plan.total_steps = settings.at("steps");
    plan.fp_steps = settings.at("fp_steps");
    plan.qat_steps = settings.at("qat_steps");
    plan.schedule = parse_schedule(settings.at("schedule"));
    plan.cooldown = parse_cooldown(settings.at("cooldown"));
    plan.warmup_steps = settings.at("warmup_steps");
    plan.cooldown_steps = settings.at("cooldown_steps");
    plan.qat_warmup_steps = settings.at("qat_warmup_steps");
    plan.qat_cooldown_steps = settings.at("qat_cooldown_steps");
    plan.learning_rate = settings.at("lr");
    plan.qat_learning_rate = settings.at("qat_lr");
    plan.final_learning_rate_fraction = settings.at("final_lr_frac");
    return plan;
}

std::string traffic_row(const char* name, const DataParallel::StepTraffic& traffic) {
    if (traffic.total() == 0) return "";
    std::string row = formatted("  %-52s %8s", name, format_bytes(traffic.total()).c_str());
    if (traffic.weights > 0)
        row +=
            formatted(" (gradients %s, weights %s, %.1fx less than unpacked)",
                      format_bytes(traffic.gradients).c_str(), format_bytes(traffic.weights).c_str(),
                      static_cast<double>(traffic.unpacked_weights) / static_cast<double>(traffic.weights));
    return row + "\n";
}

}  // namespace

RunLayout run_layout(const Options& options, int ranks) {
    RunLayout layout{ranks, options.zero, options.batch, options.gradient_accumulation};
    if (!options.total_batch) return layout;
    const int64_t of_rank = *options.total_batch / ranks;
    if (*options.total_batch % ranks != 0)
        throw std::runtime_error("-total_batch " + std::to_string(*options.total_batch) +
                                 ": must be a multiple of the number of ranks, " + std::to_string(ranks));
    // The largest micro-batch that divides it.
    for (layout.batch = std::min(options.batch, of_rank); of_rank % layout.batch != 0;) --layout.batch;
    layout.gradient_accumulation = of_rank / layout.batch;
    return layout;
}

std::string describe(const RunLayout& layout) {
    const auto counted = [](int64_t count, const std::string& one, const std::string& many) {
        return std::to_string(count) + " " + (count == 1 ? one : many);
    };
    return "  a step            " + counted(layout.ranks, "rank", "ranks") + " x " +
           counted(layout.gradient_accumulation, "micro-batch", "micro-batches") + " of " +
           counted(layout.batch, "sequence", "sequences") + "\n";
}

Plan plan_of(const Options& options, const ModelConfig& config, const RunLayout& layout) {
    PlanRequest request = options.plan;
    request.parameters = parameter_count(config);
    request.tokens_per_step = layout.step_sequences() * config.sequence_length;
    return make_plan(request);
}

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
            {"total_batch", plan.tokens_per_step / config.sequence_length},
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

void check_ranks_agree(Communicator& communicator, const nlohmann::ordered_json& settings,
                       const RunLayout& layout, const DataFingerprints& data) {
    struct Hashes {
        uint64_t settings;
        DataFingerprints data;
    };
    std::vector<Hashes> all(static_cast<size_t>(communicator.size()));
    all[static_cast<size_t>(communicator.rank())] = {
        checksum_of(settings.dump() + describe(layout) + std::to_string(layout.zero)), data};
    communicator.gather_on_host(all.data(), sizeof(Hashes));
    for (size_t rank = 1; rank < all.size(); ++rank) {
        const std::string other = "rank " + std::to_string(rank) + " has other ";
        if (all[rank].settings != all[0].settings)
            throw JointError(other +
                             "settings than rank 0: start all ranks with the same flags, on like machines");
        if (all[rank].data.training != all[0].data.training)
            throw JointError(other + "training shards (-i) than rank 0: give all ranks the same files");
        if (all[rank].data.validation != all[0].data.validation)
            throw JointError(other + "validation shards (-j) than rank 0: give all ranks the same files");
    }
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
    check_settings(json.at("settings"), settings, "-resume",
                   "give the flags of the first run, or start anew with another -o");
    check_data(json, data_fingerprint, "-resume");
    return state_of(json);
}

nlohmann::ordered_json trunk_settings(const nlohmann::ordered_json& settings) {
    // The plan's, and those of quantization.
    static const std::set<std::string> others = {
        "b",         "group",         "steps",    "qat_frac",         "fp_steps",
        "qat_steps", "schedule",      "cooldown", "warmup_steps",     "cooldown_steps",
        "qat_lr",    "final_lr_frac", "scale_lr", "qat_warmup_steps", "qat_cooldown_steps"};
    nlohmann::ordered_json trunk;
    for (const auto& [key, value] : settings.items())
        if (others.count(key) == 0) trunk[key] = value;
    return trunk;
}

RunState read_branch_state(const nlohmann::json& json, const nlohmann::ordered_json& settings,
                           uint64_t data_fingerprint, const Plan& plan, int64_t step) {
    check_settings(json.at("settings"), trunk_settings(settings), "-from",
                   "give a checkpoint of a run that begins with the same steps");
    check_data(json, data_fingerprint, "-from");
    RunState state = state_of(json);
    const int64_t shared = shared_steps(curve_of(json.at("settings")), plan);
    if (state.quantized || shared < step)
        throw std::runtime_error("-from: the checkpoint is of step " + std::to_string(step) +
                                 ", but only the first " + std::to_string(shared) +
                                 " steps of its run are those of this one (full precision, with equal "
                                 "learning rates); give an earlier one, or a -warmup in steps");
    state.results = RunResults();
    return state;
}

nlohmann::ordered_json run_record(const nlohmann::ordered_json& settings, const RunLayout& layout,
                                  const Plan& plan, const RunResults& results, const std::string& device) {
    nlohmann::ordered_json outcome = losses_of(results);
    outcome["tokens_per_second_fp"] = results.fp_tokens_per_second;
    outcome["tokens_per_second_qat"] = results.qat_tokens_per_second;
    outcome["bytes_sent_per_step"] = {{"FP", bytes_of(results.fp_traffic)},
                                      {"QAT", bytes_of(results.qat_traffic)}};
    outcome["sample"] = results.sample;
    return {{"configuration", settings},
            {"layout",
             {{"ranks", layout.ranks},
              {"zero", layout.zero},
              {"batch", layout.batch},
              {"grad_accum", layout.gradient_accumulation}}},
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
    if (results.fp_traffic.total() + results.qat_traffic.total() > 0) table += "sent by a rank in a step\n";
    table += traffic_row("full-precision steps", results.fp_traffic);
    table += traffic_row("quantization-aware steps", results.qat_traffic);
    if (!results.sample.empty()) table += "\nsample\n" + results.sample + "\n";
    return table;
}

}  // namespace train_qat
