// Notices numbers that go wrong, before they reach the weights.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace train_qat {

class RunGuard {
  public:
    explicit RunGuard(int64_t vocabulary);

    // After the backward pass of `step` (counted from 1), before its update. losses: of each rank, all of the
    // same weight. Throws std::runtime_error with the step, the rank, the tensor and the last good checkpoint
    // if a loss or the gradient norm is not finite, or if the mean loss has been far above that of guessing,
    // ln V, for many steps in a row. `offender`: the first tensor whose gradient is not finite, or empty.
    void check(int64_t step, std::span<const double> losses, double gradient_norm,
               const std::string& offender);

    void set_last_checkpoint(const std::string& path) { last_checkpoint_ = path; }

  private:
    [[noreturn]] void stop(int64_t step, const std::string& what) const;

    double divergence_threshold_;
    int64_t steps_above_ = 0;
    std::string last_checkpoint_;
};

}  // namespace train_qat
