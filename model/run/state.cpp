#include "model/run/state.h"

#include <algorithm>
#include <stdexcept>

#include "model/job/model_settings.h"
#include "model/plan/schedule.h"
#include "model/storage/checksum.h"

namespace train_qat {

namespace {

// A number that survives JSON bit by bit.
std::string text(uint64_t value) {
    return std::to_string(value);
}

// What checkpoints were trained with that are older than the setting and do not name it.
nlohmann::json unnamed_setting(const nlohmann::json& saved, const std::string& flag) {
    return flag == "logits" ? nlohmann::json("float32") : unnamed_model_setting(saved, flag);
}

// What both runs began with, before all that follows from it. Values: null for new weights, else their fingerprint.
void check_initial_weights(const nlohmann::json& saved, const nlohmann::ordered_json& settings,
                           const std::string& flag) {
    if (!settings.contains("init_from")) return;
    const nlohmann::json its = saved.value("init_from", nlohmann::json()), own = settings.at("init_from");
    if (its == own) return;
    throw std::runtime_error(
        flag + ": the checkpoint was trained with init_from " + its.dump() + ", this run has " + own.dump() +
        (its.is_null() ? "; it began with new weights: leave -init_from out"
         : own.is_null()
             ? "; it began with a Hugging Face folder: add -init_from and that folder"
             : "; it began with other weights: name their folder with -init_from, as it was then"));
}

// What to do about a setting that differs from its saved value. -dtype auto chooses by the device, so that giving the same
// flags again is no help elsewhere.
std::string advice_on(const std::string& setting, const nlohmann::json& saved, const char* advice) {
    if (setting == "total_batch") return "give -total_batch " + saved.dump();
    if (setting == "dtype" && saved == "float32") return "give -dtype fp32";
    if (setting == "dtype") return "give -dtype bf16, on a processor or GPU that has it";
    return advice;
}

void check_settings(const nlohmann::json& saved, const nlohmann::ordered_json& settings, const char* flag,
                    const char* advice) {
    check_initial_weights(saved, settings, flag);
    for (const auto& [key, value] : settings.items()) {
        const nlohmann::json its = saved.contains(key) ? saved.at(key) : unnamed_setting(saved, key);
        if (its != nlohmann::json(value))
            throw std::runtime_error(std::string(flag) + ": the checkpoint was trained with " + key + " " +
                                     its.dump() + ", this run has " + value.dump() + "; " +
                                     advice_on(key, its, advice));
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
    read_losses(json.at("results"), state.results);
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

}  // namespace

void add_data_record(const DataRecord& record, nlohmann::json& json) {
    std::vector<std::string> checksums;
    for (const uint64_t checksum : record.checksums) checksums.push_back(checksum_text(checksum));
    json["data_checksums"] = checksums;
    json["validation"] = {{"shards", record.validation},
                          {"fingerprint", record.validation_fingerprint},
                          {"since_step", record.validation_since_step}};
}

void check_shards_unchanged(const nlohmann::json& json, const DataRecord& record, const char* flag) {
    if (!json.contains("data_checksums")) return;
    const auto saved = json.at("data_checksums").get<std::vector<std::string>>();
    for (size_t i = 0; i < std::min(saved.size(), record.checksums.size()); ++i)
        if (saved[i] != checksum_text(record.checksums[i]))
            throw std::runtime_error(
                std::string(flag) + ": " + record.shards[i] +
                " of -i holds other tokens than when the checkpoint was saved; bring back the shard "
                "that it was trained with, or start anew with another -o");
}

void continue_validation(const nlohmann::json& json, int64_t step, DataRecord& record, std::ostream& log) {
    if (!json.contains("validation")) return;
    const nlohmann::json& saved = json.at("validation");
    const bool same = saved.at("fingerprint") == record.validation_fingerprint;
    record.validation_since_step = same ? saved.at("since_step").get<int64_t>() : step + 1;
    if (same || step == 0) return;
    const auto named = [](const std::string& shards) { return shards.empty() ? "none" : shards; };
    log << "resume: warning: other validation data (-j " << named(record.validation) << ") than before (-j "
        << named(saved.at("shards")) << "), or another -val_sequences: losses on them up to step " << step
        << " do not compare with those after it" << std::endl;
}

nlohmann::json to_json(const RunState& state, const RunSettings& settings, uint64_t data_fingerprint) {
    return {{"settings", with_roles(settings, recorded_roles)}, {"quantized", state.quantized},
            {"optimizer_steps", state.optimizer_steps},         {"scale_steps", state.scale_steps},
            {"loader_position", state.loader_position},         {"data_fingerprint", text(data_fingerprint)},
            {"results", losses_to_json(state.results)}};
}

RunState read_run_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint) {
    check_settings(json.at("settings"), with_roles(settings, recorded_roles), "-resume",
                   "give the flags of the first run, or start anew with another -o");
    check_data(json, data_fingerprint, "-resume");
    return state_of(json);
}

RunState read_branch_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint,
                           const Plan& plan, int64_t step) {
    check_settings(json.at("settings"), with_roles(settings, trunk_roles), "-from",
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

}  // namespace train_qat
