#include "model/run/guard.h"

#include <cmath>
#include <stdexcept>

namespace train_qat {

namespace {

// A fresh model has a loss of about ln V, and a model that was just rounded to one bit may have more for a
// while. A loss this far above, for this many steps, does not come back.
constexpr double threshold_factor = 2.0;
constexpr int64_t patience_steps = 50;

}  // namespace

RunGuard::RunGuard(int64_t vocabulary)
    : divergence_threshold_(threshold_factor * std::log(static_cast<double>(vocabulary)) + 1.0) {}

void RunGuard::check(int64_t step, std::span<const double> losses, double gradient_norm,
                     const std::string& offender) {
    double loss = 0;
    for (size_t rank = 0; rank < losses.size(); ++rank) {
        loss += losses[rank] / static_cast<double>(losses.size());
        if (!std::isfinite(losses[rank]))
            stop(step, "the loss" + (losses.size() > 1 ? " of rank " + std::to_string(rank) : std::string()) +
                           " is " + std::to_string(losses[rank]) +
                           (offender.empty() ? "" : ", first bad gradient: " + offender));
    }
    if (!std::isfinite(gradient_norm))
        stop(step, "the gradient norm is not finite, first bad gradient: " +
                       (offender.empty() ? std::string("none alone, their sum overflows") : offender));
    steps_above_ = loss > divergence_threshold_ ? steps_above_ + 1 : 0;
    if (steps_above_ >= patience_steps)
        stop(step, "the loss diverges: above " + std::to_string(divergence_threshold_) + " for " +
                       std::to_string(patience_steps) + " steps, now " + std::to_string(loss));
}

void RunGuard::stop(int64_t step, const std::string& what) const {
    throw std::runtime_error("step " + std::to_string(step) + ": " + what +
                             "; nothing of this step was kept, " +
                             (last_checkpoint_.empty() ? std::string("there is no checkpoint yet")
                                                       : "the last good checkpoint is " + last_checkpoint_) +
                             "; try a lower -lr or a lower -clip");
}

}  // namespace train_qat
