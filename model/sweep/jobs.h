// The jobs of a sweep as runs: with which options each is trained, where it lies, and what is recorded of it.
#pragma once

#include <string>
#include <vector>

#include "model/run/options.h"
#include "model/sweep/plan.h"
#include "model/sweep/results.h"

namespace train_qat {

struct Sweep {
    Options options;            // of the sweep's own command line
    std::vector<Options> runs;  // in the order of plan.runs
    SweepPlan plan;
};

// What a job is trained with: as much of its run as it has, from its trunk's checkpoint or its own latest.
Options options_of_job(const Sweep& sweep, int job);

std::string directory_of_job(const Sweep& sweep, int job);
// The last checkpoint of a trunk, from which others branch off.
std::string end_of_trunk(const Sweep& sweep, int trunk);
std::string results_path(const Sweep& sweep);

// All of the result of a leaf's run but what the training finds.
SweepOutcome outcome_of(const Sweep& sweep, int leaf);
// Its line in results.jsonl when it has failed.
nlohmann::ordered_json failure_record(const Sweep& sweep, int leaf, const std::string& reason);

// The leaf that finishes a run.
int leaf_of(const Sweep& sweep, int run);

}  // namespace train_qat
