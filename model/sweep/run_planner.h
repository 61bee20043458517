// From the grid of a sweep to its jobs: the options of every run, what its steps are, and what tells it from
// other runs.
#pragma once

#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/config.h"
#include "model/job/options.h"
#include "model/sweep/jobs.h"
#include "model/sweep/plan.h"

namespace train_qat {

// Plans the runs of one device and dtype. Remembers what shards they read.
class RunPlanner {
  public:
    RunPlanner(const Backend& backend, DType compute_type) : backend_(backend), compute_type_(compute_type) {}

    // Of a run on -sweep_ranks ranks; the sweep names it. std::runtime_error naming the flag.
    SweepRunPlan plan(const Options& options);

  private:
    struct Data {
        std::string
            in_order;  // the fingerprints of the training data in the order of the seed, and of the validation
        std::string contents;  // see SweepRunPlan::data
    };
    const Data& data_of(const Options& options, const ModelConfig& config);

    const Backend& backend_;
    const DType compute_type_;
    std::map<std::pair<int64_t, uint64_t>, Data> known_data_;  // by vocabulary and seed
};

// All runs of -sweep. arguments: the command line that `options` was made of; `options` also have the data
// that no flag names. On `log`: which dtype -dtype auto is. std::runtime_error naming the grid, run and flag.
Sweep plan_runs(const std::vector<std::string>& arguments, const Options& options, const Backend& backend,
                std::ostream& log);

}  // namespace train_qat
