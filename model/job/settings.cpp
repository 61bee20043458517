#include "model/job/settings.h"

#include <algorithm>
#include <ostream>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/import/hugging_face_weights.h"
#include "model/job/model_settings.h"
#include "model/storage/checksum.h"

namespace train_qat {

namespace {

// Of the weights that a run begins with: null where they are new.
nlohmann::ordered_json initial_weights(const Options& options) {
    if (options.initial_model.empty()) return nullptr;
    return checksum_text(HuggingFaceWeights(options.initial_model).fingerprint());
}

}  // namespace

// The order is that of run.json.
RunSettings run_settings(const Options& options, const RunPlan& run, const Backend& backend,
                         DType compute_type) {
    using enum SettingRole;
    const ModelConfig& config = run.config;
    const Plan& steps = run.plan;
    const OptimizerConfig& optimizer = options.optimizer;
    const LogitOptions logits = logit_options(options, compute_type);
    RunSettings settings;
    const nlohmann::ordered_json model = model_settings(config);
    for (const auto& [name, value] : model.items()) settings.push_back({name, value, identity});
    const RunSettings others = {
        {"init_from", initial_weights(options), identity},
        {"b", options.bits, plan},
        {"group", options.group, quantization},
        {"steps", steps.total_steps, plan},
        {"qat_frac", steps.qat_fraction, plan},
        {"fp_steps", steps.fp_steps, plan},
        {"qat_steps", steps.qat_steps, plan},
        {"total_batch", run.layout.step_sequences(), identity},
        {"schedule", to_string(steps.schedule), plan},
        {"cooldown", to_string(steps.cooldown), plan},
        {"warmup_steps", steps.warmup_steps, plan},
        {"cooldown_steps", steps.cooldown_steps, plan},
        {"qat_warmup_steps", steps.qat_warmup_steps, plan},
        {"qat_cooldown_steps", steps.qat_cooldown_steps, plan},
        {"lr", steps.learning_rate, identity},
        {"qat_lr", steps.qat_learning_rate, plan},
        {"final_lr_frac", steps.final_learning_rate_fraction, plan},
        {"scale_lr", optimizer.scale_learning_rate_factor, quantization},
        {"beta1", optimizer.beta1, identity},
        {"beta2", optimizer.beta2, identity},
        {"eps", optimizer.epsilon, identity},
        {"weight_decay", optimizer.weight_decay, identity},
        {"clip", optimizer.clip_norm, identity},
        {"seed", options.seed, identity},
        {"dtype", name_of(compute_type), identity},
        {"logits", name_of(logits.type), identity},
        {"master", options.master, identity},
        {"ranks", run.layout.ranks, layout},
        {"zero", run.layout.zero, sharding},
        {"batch", run.layout.batch, layout},
        {"grad_accum", run.layout.gradient_accumulation, layout},
        {"logit_rows", logit_chunk_rows(backend, config, run.layout.batch, logits), layout},
        {"device", backend.host_addressable() ? "cpu" : "cuda", arithmetic},
        {"qat_gemm", options.qat_gemm, arithmetic},
        {"gemm", options.gemm, arithmetic},
        {"attention", options.attention, arithmetic},
        {"val_every", options.validate_every, measurement},
        {"val_sequences", options.validation_sequences, measurement},
    };
    settings.insert(settings.end(), others.begin(), others.end());
    return settings;
}

nlohmann::ordered_json with_roles(const RunSettings& settings, SettingRoles roles) {
    nlohmann::ordered_json chosen = nlohmann::ordered_json::object();
    for (const Setting& setting : settings)
        if (std::find(roles.begin(), roles.end(), setting.role) != roles.end())
            chosen[setting.flag] = setting.value;
    return chosen;
}

DType compute_type(const Options& options, const Backend& backend, std::ostream& log) {
    const bool fast_bfloat16 = backend.supports(DType::bfloat16);
    if (options.dtype == "fp32") return DType::float32;
    if (options.dtype == "bf16" && !fast_bfloat16)
        throw std::runtime_error("-dtype bf16: this processor has no bfloat16 dot products; use -dtype fp32");
    if (fast_bfloat16) return DType::bfloat16;
    log << "dtype: float32 (-dtype auto: this processor has no bfloat16 dot products)\n";
    return DType::float32;
}

LogitOptions logit_options(const Options& options, DType compute_type) {
    if (options.logits == "fp32") return {options.logit_rows, DType::float32};
    if (compute_type != DType::bfloat16)
        throw std::runtime_error(
            "-logits bf16: this device computes in float32, also the logits' gradient; use -logits fp32");
    return {options.logit_rows, DType::bfloat16};
}

void check_ranks_agree(Communicator& communicator, const RunSettings& settings,
                       const DataFingerprints& data) {
    struct Hashes {
        uint64_t settings;
        DataFingerprints data;
    };
    std::string text;
    for (const Setting& setting : settings) text += setting.flag + " " + setting.value.dump() + "\n";
    std::vector<Hashes> all(static_cast<size_t>(communicator.size()));
    all[static_cast<size_t>(communicator.rank())] = {checksum_of(text), data};
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

}  // namespace train_qat
