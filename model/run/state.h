// Where a run stands, as its checkpoints keep it beside the weights.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

#include "model/plan/plan.h"
#include "model/run/results.h"
#include "model/run/settings.h"

namespace train_qat {

// The variable part of a checkpoint.
struct RunState {
    bool quantized = false;
    int64_t optimizer_steps = 0, scale_steps = 0;
    int64_t loader_position = 0;
    RunResults results;  // the losses of it
};

nlohmann::json to_json(const RunState& state, const RunSettings& settings, uint64_t data_fingerprint);

// Throws std::runtime_error naming the first recorded setting that differs from `settings`, or when the
// training data is not that of the checkpoint.
RunState read_run_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint);

// The same for a run that branches off: the checkpoint, of `step` full-precision steps, is of another run
// whose plan differs from `plan`, but not in these steps.
RunState read_branch_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint,
                           const Plan& plan, int64_t step);

}  // namespace train_qat
