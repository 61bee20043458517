// A sweep: trains every run of a grid, with all ranks of a job as workers that take jobs from one queue.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/run/job.h"
#include "model/run/options.h"
#include "model/run/run_state.h"
#include "model/sweep/plan.h"

namespace train_qat {

struct TrainingOutcome {
    bool finished = true;  // as far as it was to go; false: interrupted, with a checkpoint to go on from
    RunResults results;
    double seconds = 0;
};

// Told of each step: steps done, loss, tokens per second. True: to stop after it.
using StepObserver = std::function<bool(int64_t, double, double)>;

// What a sweep leaves to its caller.
struct SweepWork {
    // Plan, trunk key and FLOPs of a run on this many ranks; the sweep names it.
    std::function<SweepRunPlan(const Options&, int)> plan;
    // Trains a run, or the part of it that its options ask for, on all ranks of the communicator.
    std::function<TrainingOutcome(const Options&, Backend&, Communicator&, std::ostream&,
                                  const StepObserver&)>
        train;
    std::function<bool()> stop_requested;
};

// Collective over all ranks of `world`. arguments: the command line, of which `options` was made; a run's own
// flags come on top. Writes into -o
//     runs/NAME_ID/          each run, as if it had been trained alone, and log.txt: what it printed
//     trunks/NAME_ID/        full-precision steps that several runs begin with, until these have branched off
//     queue/                 who does what (model/sweep/queue.h)
//     results.jsonl          a line for each run that is done or has failed (model/sweep/results.h)
// A run that fails is recorded and does not stop the others. An interrupted sweep goes on when it is started
// again. Returns whether all runs have been trained or have failed; false: it was interrupted.
bool run_sweep(const std::vector<std::string>& arguments, const Options& options, World& world,
               const SweepWork& work);

}  // namespace train_qat
