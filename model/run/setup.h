// Everything that a run needs, built and checked before its first step.
#pragma once

#include <memory>
#include <optional>
#include <ostream>

#include "data/loader.h"
#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/optimizer.h"
#include "model/run/checkpoints.h"
#include "model/run/log.h"
#include "model/run/options.h"
#include "model/run/reports.h"
#include "model/run/run_plan.h"
#include "model/run/sample.h"
#include "model/run/settings.h"
#include "model/run/validation.h"
#include "model/transformer.h"

namespace train_qat {

struct Setup {
    // model: of this plan and these options, with its memory laid out. Takes the memory. std::runtime_error:
    // shards, tokenizer, or too little memory.
    Setup(const Options& options, const RunPlan& run_plan, std::unique_ptr<Transformer> model,
          Communicator& communicator, std::ostream& console);
    Setup(const Setup&) = delete;
    Setup& operator=(const Setup&) = delete;

    const Options options;
    const RunPlan run_plan;
    Communicator& communicator;
    std::ostream& console;
    const std::unique_ptr<Transformer> model;
    Optimizer optimizer;
    DataLoader training_data;
    std::optional<Validation> validation;  // without -j: none
    std::optional<TextSample> sample;      // without -tokenizer: none
    const RunSettings settings;
    RunCheckpoints checkpoints;
    RunLog log;
    StepReports reports;
};

// Prints the plan and the memory of a run on all ranks of the communicator, and builds it; nothing when only
// the plan was asked for (-plan). On each rank alone: what it throws, the others must hear of (run_together).
std::unique_ptr<Setup> make_setup(const Options& options, Backend& backend, Communicator& communicator,
                                  std::ostream& console);

}  // namespace train_qat
