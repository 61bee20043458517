// What a run records of itself beside the weights: the settings that a resumed run must share, where it
// stands, and what came out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "kernels/tensor.h"
#include "model/config.h"
#include "model/data_parallel.h"
#include "model/plan/plan.h"
#include "model/run/options.h"

namespace train_qat {

// Losses on the validation shards, speed, and text, as far as they are known.
struct RunResults {
    std::optional<double> full_precision;  // at the switch, or at the end of a run without one
    std::optional<double> rounded;         // the same weights, only rounded (post-training quantization)
    std::optional<double> quantized;       // at the end of quantization-aware training
    double fp_tokens_per_second = 0, qat_tokens_per_second = 0;  // 0: no steps in this process
    // What a rank sends in a step; 0 bytes: nothing, or no such steps.
    DataParallel::StepTraffic fp_traffic, qat_traffic;
    std::string sample;
};

// How a run's work is divided, which changes its numbers in their last places only.
struct RunLayout {
    int ranks = 1;
    int zero = 1;
    int64_t batch = 1, gradient_accumulation = 1;  // of a rank

    int64_t step_sequences() const { return ranks * batch * gradient_accumulation; }
};

// The layout that the options ask for: with -total_batch micro-batches of -batch sequences or the next
// smaller number that divides a rank's share. std::runtime_error when ranks cannot share it evenly.
RunLayout run_layout(const Options& options, int ranks);

// A line for people, as part of a plan: "a step  2 ranks x 3 micro-batches of 4 sequences".
std::string describe(const RunLayout& layout);

// The plan of the options for this model.
Plan plan_of(const Options& options, const ModelConfig& config, const RunLayout& layout);

// Everything that the numbers of a run depend on, by flag name.
nlohmann::ordered_json run_settings(const Options& options, const ModelConfig& config, const Plan& plan,
                                    DType compute_type);

// Collective. Ranks with other settings or other shards (fingerprints of training and validation data) would
// train something that nobody has asked for: JointError naming the first such rank.
struct DataFingerprints {
    uint64_t training = 0, validation = 0;
};
void check_ranks_agree(Communicator& communicator, const nlohmann::ordered_json& settings,
                       const RunLayout& layout, const DataFingerprints& data);

// The variable part of a checkpoint.
struct RunState {
    bool quantized = false;
    int64_t optimizer_steps = 0, scale_steps = 0;
    int64_t loader_position = 0;
    RunResults results;
};

nlohmann::json to_json(const RunState& state, const nlohmann::ordered_json& settings,
                       uint64_t data_fingerprint);

// Throws std::runtime_error naming the first setting that differs from `settings`, or when the training data
// is not that of the checkpoint.
RunState read_run_state(const nlohmann::json& json, const nlohmann::ordered_json& settings,
                        uint64_t data_fingerprint);

// The same for a run that branches off: the checkpoint, of `step` full-precision steps, is of another run
// whose plan differs from `plan`, but not in these steps.
RunState read_branch_state(const nlohmann::json& json, const nlohmann::ordered_json& settings,
                           uint64_t data_fingerprint, const Plan& plan, int64_t step);

// Of the settings those that the full-precision steps of a plan depend on beside their learning rates.
nlohmann::ordered_json trunk_settings(const nlohmann::ordered_json& settings);

// The content of run.json.
nlohmann::ordered_json run_record(const nlohmann::ordered_json& settings, const RunLayout& layout,
                                  const Plan& plan, const RunResults& results, const std::string& device);

// The closing table for people, and the sample of text.
std::string results_table(const RunResults& results, const Plan& plan);

// Throughput of a phase; the first step, which creates matmuls and touches memory, does not count when there
// are more.
class PhaseTime {
  public:
    void add(int64_t tokens, double seconds) {
        if (++steps_ == 2) tokens_ = 0, seconds_ = 0;
        tokens_ += static_cast<double>(tokens);
        seconds_ += seconds;
    }
    double tokens_per_second() const { return seconds_ > 0 ? tokens_ / seconds_ : 0; }

  private:
    int64_t steps_ = 0;
    double tokens_ = 0, seconds_ = 0;
};

}  // namespace train_qat
