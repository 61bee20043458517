// A sweep: trains every run of a grid, with all ranks of a job as workers that take jobs from one queue.
#pragma once

#include <string>
#include <vector>

#include "model/run/job.h"
#include "model/run/options.h"
#include "model/run/outcome.h"

namespace train_qat {

// Collective over all ranks of `job`. arguments: the command line, of which `options` was made; a run's own
// flags come on top. Writes into -o
//     runs/NAME_ID/          each run, as if it had been trained alone, and log.txt: what it printed
//     trunks/NAME_ID/        full-precision steps that several runs begin with, until these have branched off
//     queue/                 who does what (model/sweep/queue.h)
//     results.jsonl          a line for each run that is done or has failed (model/sweep/results.h)
// A run that fails is recorded and does not stop the others. An interrupted sweep goes on when it is started
// again; runs of other bits than asked for now (other data, -batch, -sweep_ranks, -dtype, device ...) are
// others and stay beside them. Returns whether all runs have been trained or have failed; false: it was
// interrupted.
bool run_sweep(const std::vector<std::string>& arguments, const Options& options, Job& job,
               const TrainFunction& train);

}  // namespace train_qat
