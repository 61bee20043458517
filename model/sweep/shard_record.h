// The tokens that a sweep's jobs are trained on: the same for all, from the first job to the last.
#pragma once

#include <ostream>

#include "model/sweep/jobs.h"

namespace train_qat {

// By rank 0, before any worker begins: keeps checksums of the training shards in OUTPUT/queue/shards.json, or compares them
// with those that jobs of the same ids were trained with before. std::runtime_error that names a shard with other tokens,
// or what cannot be read or written. log: is told when reading takes long.
void record_shards(const Sweep& sweep, std::ostream& log);

// By whoever begins a job: std::runtime_error, as above, when a shard has changed since.
void check_shards(const Sweep& sweep, int job);

}  // namespace train_qat
