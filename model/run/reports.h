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

    // Collective: this rank's mean loss, and whether it is to stop: a signal may reach one rank alone.
    void gather(double loss);

    double loss() const;  // mean of all ranks
    // Whether all are to stop after this step.
    bool stop() const { return stop_; }
    // This rank wants to, from the next step on, as after a signal.
    void ask_to_stop() { asked_to_stop_ = true; }

    // See RunGuard::check. All ranks see the same numbers, so all throw the same JointError.
    void check(int64_t step, double gradient_norm, const std::string& offender);
    void set_last_checkpoint(const std::string& path) { guard_.set_last_checkpoint(path); }

  private:
    Communicator& communicator_;
    RunGuard guard_;
    std::vector<double> losses_;  // of each rank
    bool asked_to_stop_ = false, stop_ = false;
};

}  // namespace train_qat
