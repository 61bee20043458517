#include "model/run/layout.h"

#include <algorithm>
#include <stdexcept>

namespace train_qat {

RunLayout run_layout(const Options& options, int ranks) {
    RunLayout layout{ranks, options.zero, options.batch, options.gradient_accumulation};
    if (!options.total_batch) return layout;
    const int64_t of_rank = *options.total_batch / ranks;
    if (*options.total_batch % ranks != 0)
        throw std::runtime_error("-total_batch " + std::to_string(*options.total_batch) +
                                 ": must be a multiple of the number of ranks, " + std::to_string(ranks));
    // The largest micro-batch that divides it.
    for (layout.batch = std::min(options.batch, of_rank); of_rank % layout.batch != 0;) --layout.batch;
    layout.gradient_accumulation = of_rank / layout.batch;
    return layout;
}

std::string describe(const RunLayout& layout) {
    const auto counted = [](int64_t count, const std::string& one, const std::string& many) {
        return std::to_string(count) + " " + (count == 1 ? one : many);
    };
    return "  a step            " + counted(layout.ranks, "rank", "ranks") + " x " +
           counted(layout.gradient_accumulation, "micro-batch", "micro-batches") + " of " +
           counted(layout.batch, "sequence", "sequences") + "\n";
}

}  // namespace train_qat
