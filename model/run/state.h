// Where a run stands, as its checkpoints keep it beside the weights.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "model/job/settings.h"
#include "model/plan/plan.h"
#include "model/run/results.h"

namespace train_qat {

// The variable part of a checkpoint.
struct RunState {
    bool quantized = false;
    int64_t optimizer_steps = 0, scale_steps = 0;
    int64_t loader_position = 0;
    RunResults results;  // the losses of it
};

// What of the data a checkpoint keeps beside the fingerprint of the training shards. On rank 0 only.
struct DataRecord {
    std::vector<std::string> shards;     // of -i
    std::vector<uint64_t> checksums;     // of all their tokens (model/storage/shard_checksums.h)
    std::string validation;              // -j
    std::string validation_fingerprint;  // empty: no validation
    int64_t validation_since_step = 0;   // the first step that it measures
};

// Adds it to the JSON of a state.
void add_data_record(const DataRecord& record, nlohmann::json& json);

// Throws std::runtime_error naming the first training shard whose tokens are others than those of the checkpoint. Older
// checkpoints, which do not say, are taken as they are.
void check_shards_unchanged(const nlohmann::json& json, const DataRecord& record, const char* flag);

// Where -j measures what it measured before the checkpoint of `step`, since when it has; elsewhere since the next step,
// which a warning on `log` says.
void continue_validation(const nlohmann::json& json, int64_t step, DataRecord& record, std::ostream& log);

nlohmann::json to_json(const RunState& state, const RunSettings& settings, uint64_t data_fingerprint);

// Throws std::runtime_error naming the first recorded setting that differs from `settings`, or when the
// training data is not that of the checkpoint.
RunState read_run_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint);

// The same for a run that branches off: the checkpoint, of `step` full-precision steps, is of another run
// whose plan differs from `plan`, but not in these steps.
RunState read_branch_state(const nlohmann::json& json, const RunSettings& settings, uint64_t data_fingerprint,
                           const Plan& plan, int64_t step);

}  // namespace train_qat
