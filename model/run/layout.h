// How a run's work is divided among ranks and micro-batches.
#pragma once

#include <cstdint>
#include <string>

#include "model/run/options.h"

namespace train_qat {

// Changes a run's numbers in their last places only; zero not even there.
struct RunLayout {
    int ranks = 1;
    int zero = 1;
    int64_t batch = 1, gradient_accumulation = 1;  // sequences of a micro-batch, micro-batches of a rank

    int64_t step_sequences() const { return ranks * batch * gradient_accumulation; }
};

// The layout that the options ask for: with -total_batch micro-batches of -batch sequences or the next
// smaller number that divides a rank's share. std::runtime_error when ranks cannot share it evenly.
RunLayout run_layout(const Options& options, int ranks);

// A line for people, as part of a plan: "a step  2 ranks x 3 micro-batches of 4 sequences".
std::string describe(const RunLayout& layout);

}  // namespace train_qat
