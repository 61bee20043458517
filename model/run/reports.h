// What ranks tell one another after every backward pass, so that all go on or all stop.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ranks/communicator.h"
#include "model/run/guard.h"

namespace train_qat {

class StepReports {
  public:
    StepReports(Communicator& communicator, int64_t vocabulary)
        : communicator_(communicator), guard_(vocabulary) {}

    // Collective: this rank's mean loss, and whether it is to stop after this step: a signal may reach one
    // rank alone.
    void gather(double loss, bool stop);

    double loss() const;  // mean of all ranks
    bool stop() const { return stop_; }

    // See RunGuard::check. All ranks see the same numbers, so all throw the same JointError.
    void check(int64_t step, double gradient_norm, const std::string& offender);
    void set_last_checkpoint(const std::string& path) { guard_.set_last_checkpoint(path); }

  private:
    Communicator& communicator_;
    RunGuard guard_;
    std::vector<double> losses_;  // of each rank
    bool stop_ = false;
};

}  // namespace train_qat
