// A run's own checkpoints: weights, optimizer and state together, by all its ranks; and where a run begins.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "model/job/options.h"
#include "model/optimizer.h"
#include "model/parameters.h"
#include "model/plan/plan.h"
#include "model/run/state.h"
#include "model/storage/checkpoint.h"

namespace train_qat {

struct RunPosition {
    int64_t step = 0;  // optimizer steps done
    int64_t loader_position = 0;
    RunResults results;
    std::string checkpoint;  // that it was loaded from; empty: new weights
};

struct RunStart {
    RunPosition position;
    bool branched = false;  // just now, off another run
    // Of a metrics file that may be there already: the first step that is written anew.
    std::optional<int64_t> first_metrics_step;
};

class RunCheckpoints {
  public:
    // Of the options: output directory, resume, from, initial_model, trunk, seed and keep. settings, data_fingerprint: what
    // a resumed run must share (model/job/settings.h).
    RunCheckpoints(const Options& options, Backend& backend, Parameters& parameters, Optimizer& optimizer,
                   const RunSettings& settings, uint64_t data_fingerprint);

    // Of what -j measures; without it: no validation.
    void set_validation_fingerprint(uint64_t fingerprint) {
        data_.validation_fingerprint = std::to_string(fingerprint);
    }

    // Collective, as is save(). Weights and optimizer as the run begins, said on `log`: from the latest
    // checkpoint in its directory (-resume) or the one that -resume_from names, from a checkpoint of another run whose first
    // steps are those of `plan` and whose metrics are then copied (-from), of a Hugging Face folder (-init_from), or new.
    // std::runtime_error when the directory holds a run and this one does not resume it, or when nothing valid is left to
    // resume, or the checkpoint is not
    // one of this run.
    RunStart start(const Plan& plan, std::ostream& log);

    // Returns its path. Only a resumed run replaces a checkpoint of the same step.
    std::string save(const RunPosition& position);

  private:
    std::optional<std::string> find(std::ostream& log) const;
    std::string find_named() const;
    void set_aside_later(int64_t step, std::ostream& log) const;
    void check_data(const CheckpointReader& reader, const char* flag, std::ostream& log);
    std::string other_checkpoints(const std::string& path) const;
    RunPosition load(const std::string& path, const Plan* branch, std::ostream& log);
    void begin_anew(std::ostream& log);
    RunStart branch_off(const Plan& plan, std::ostream& log);

    const Options& options_;
    Backend& backend_;
    Parameters& parameters_;
    Optimizer& optimizer_;
    Communicator& communicator_;
    const RunSettings settings_;
    const uint64_t data_fingerprint_;
    DataRecord data_;  // on rank 0
};

}  // namespace train_qat
