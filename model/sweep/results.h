// OUTPUT/results.jsonl: one JSON object a line for every run of a sweep, the input of fits and plots.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/plan/plan.h"
#include "model/run/results.h"

namespace train_qat {

// Appends one line, in one write and flushed to the disk. Safe from several threads and processes at once. A
// last line that was cut off by a kill is dropped before. NaN and infinity become null. Throws
// std::runtime_error when the file system refuses; the other lines stay as they are.
void append_result(const std::string& path, const nlohmann::ordered_json& record);

// All records; one of the same job (the same run, whatever its name) replaces an earlier one. None if there
// is no file. A last line that was cut off is left out. Throws std::runtime_error for any other line that is
// no JSON object with a text "run".
std::vector<nlohmann::ordered_json> read_results(const std::string& path);

// What a run of a sweep came to.
struct SweepOutcome {
    std::string run;                       // name in the sweep
    std::string job;                       // id of its leaf: the same run, whatever its name
    std::optional<std::string> failure;    // why there is no result
    std::optional<double> asked_fraction;  // -qat_frac; nothing: auto
    Cooldown asked_cooldown = Cooldown::automatic;
    uint64_t seed = 0;
    Plan plan;
    RunResults results;
    int64_t trained_steps = 0;  // its own
    int64_t shared_steps = 0;   // trained by trunk segments before them
    double seconds = 0;         // of its own steps and validations, since it was last resumed
    std::string directory;
    int64_t vocabulary = 0;
    std::string data;  // see SweepRunPlan::data
};

// Keys: run, job, status ("done" or "failed"), reason (null when done), n (exact parameters), tokens (those
// of the whole steps), b, qat_frac (a number, or "auto"), qat_frac_used, cooldown (as asked), cooldown_used,
// seed, lr, qat_lr (the peaks of both ranges), vocabulary, data (see SweepRunPlan), tokens_per_step, fp_tokens, qat_tokens, tokens_per_parameter_byte, losses
// {full_precision_at_switch, rounded_at_switch, quantized}, validation_loss, trained_steps, shared_steps,
// seconds, directory. Losses that were not measured are null.
//
// validation_loss is that of the model as it ships, at its bits: after QAT `quantized`, without QAT `rounded`
// (only rounded; 16 bits: `full_precision`). Null for a failed run.
nlohmann::ordered_json result_record(const SweepOutcome& outcome);

// See result_record; nothing if it was not measured.
std::optional<double> final_validation_loss(const Plan& plan, const RunResults& results);

}  // namespace train_qat
