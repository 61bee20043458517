// What a run leaves to whoever trains it: the program itself, or a sweep.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/run/options.h"
#include "model/run/results.h"

namespace train_qat {

struct RunOutcome {
    bool finished = true;  // as far as it was to go; false: interrupted, with a checkpoint to go on from
    RunResults results;
    double seconds = 0;
};

// Told of each step: steps done, loss, tokens per second. True: to stop after it. May be empty.
using StepObserver = std::function<bool(int64_t, double, double)>;

// Collective: trains a run, or the part of it that its options ask for, on all ranks of the communicator.
using TrainFunction = std::function<RunOutcome(const Options&, Backend&, Communicator&, std::ostream& console,
                                               const StepObserver&)>;

}  // namespace train_qat
