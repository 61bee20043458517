// What a run is to do, as far as its options alone say: no device, no memory, no training data beside the
// header of a shard.
#pragma once

#include <string>

#include "model/config.h"
#include "model/job/layout.h"
#include "model/job/options.h"
#include "model/plan/plan.h"

namespace train_qat {

struct RunPlan {
    RunLayout layout;
    ModelConfig config;
    Plan plan;
};

// The sizes of the model: of the folder of -init_from, else solved for -n or the given shape. std::runtime_error naming
// the flag or the folder's file.
ModelConfig model_config(const Options& options);

// Of a run on this many ranks. std::runtime_error naming the flag that cannot be honoured.
RunPlan plan_run(const Options& options, int ranks);

// Adds what the law of -law predicts of it, if there is one. For the one run that is printed and recorded: it asks all
// bootstrap samples, some milliseconds in all.
void add_predictions(const Options& options, RunPlan& run);

// For people: how many tokens the training shards hold and how often the plan reads them, with a warning where that is
// more than more training can gain from. Empty without -i. std::runtime_error as DataLoader's.
std::string describe_passes(const Options& options, const ModelConfig& config, const Plan& plan);

// For people: the model, the plan, and what a step is made of.
std::string describe(const RunPlan& plan);

}  // namespace train_qat
