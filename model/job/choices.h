// What a command line leaves to the loss law of -law: -n auto, -b auto, and whether a model fits into -memory.
#pragma once

#include <string>

#include "model/job/options.h"

namespace train_qat {

// The options with the law of -law in their plan; without one they stay as they are. std::runtime_error: the file.
Options with_law(const Options& options);

struct ResolvedOptions {
    Options options;     // with a size, steps and bits instead of auto
    std::string report;  // for people: the choice among others; empty when there was none
};

// Of a run on this many ranks, before anything else reads size, bits or tokens. With -n auto: size, steps and bits by
// choose_size (model/plan/choice.h); with -b auto alone: bits by choose_bits; without either only a check that the
// model fits into -memory. The same command line, law and ranks give the same options, so that a run can be resumed.
// Needs with_law before it. std::runtime_error naming the flag.
ResolvedOptions resolve_choices(const Options& options, int ranks);

}  // namespace train_qat
