// What an earlier sweep in the same directory has left, made ready for this one.
#pragma once

#include "model/sweep/jobs.h"
#include "model/sweep/queue.h"

namespace train_qat {

// By rank 0, before any worker begins. Gives up old claims, records what results.jsonl lacks, and lets trunks
// be trained again that are gone and that waiting jobs cannot do without. std::runtime_error when the file
// system refuses.
void continue_sweep(const SweepQueue& queue, const Sweep& sweep);

}  // namespace train_qat
