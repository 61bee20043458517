// A run's own checkpoints: weights, optimizer and state together, by all its ranks.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>

#include "model/optimizer.h"
#include "model/parameters.h"
#include "model/plan.h"
#include "model/run_state.h"

namespace train_qat {

struct RunPosition {
    int64_t step = 0;  // optimizer steps done
    int64_t loader_position = 0;
    RunResults results;
    std::string checkpoint;  // it was loaded from
};

class RunCheckpoints {
  public:
    // settings, data_fingerprint: what a resumed run must share (model/run_state.h).
    RunCheckpoints(const std::string& output_directory, Backend& backend, Parameters& parameters,
                   Optimizer& optimizer, const nlohmann::ordered_json& settings, uint64_t data_fingerprint);

    // Collective, as are the others. The latest checkpoint in the directory, if there is one. With `resume`,
    // `log` is told of damaged ones that are passed over. std::runtime_error when the directory holds a run
    // and this one does not resume it, or when it resumes and nothing valid is left.
    std::optional<std::string> find(bool resume, std::ostream& log) const;

    // A checkpoint of this run.
    RunPosition load(const std::string& path);
    // A checkpoint of another run whose first steps are the same: full precision, with equal learning rates
    // on equal data.
    RunPosition load_branch(const std::string& path, const Plan& plan);

    // Returns its path. replace: a checkpoint of this step may be there, of a run that was resumed before it.
    std::string save(const RunPosition& position, bool replace, int64_t keep);

  private:
    RunPosition load(const std::string& path, const Plan* branch);

    const std::string output_directory_;
    Backend& backend_;
    Parameters& parameters_;
    Optimizer& optimizer_;
    const nlohmann::ordered_json settings_;
    const uint64_t data_fingerprint_;
};

}  // namespace train_qat
