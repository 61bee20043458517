// What a loss law says of a plan, to be printed before the run and compared with what it measures.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/plan/scaling_law.h"

namespace train_qat {

struct Plan;

// Losses are of the validation data that the law was fitted on, at the end of the plan's D tokens. Nothing: for 16
// bits; at S <= 1 where f* is of the one-constant law; where the loss law divides by tokens that there are none of; and in
// full precision if no fitted run was.
struct LawPredictions {
    std::shared_ptr<const ScalingLaw> law;
    std::optional<Prediction> optimal_fraction;  // f*
    std::optional<Prediction> at_optimal, at_used,
        at_ten_percent;                     // losses at f*, at Plan::qat_fraction, at 0.1
    std::optional<Prediction> full_precision;  // loss
    std::vector<std::string> extrapolated;  // in words: what the law was not fitted on
};

// std::runtime_error: ScalingLaw::check_size.
LawPredictions predict(std::shared_ptr<const ScalingLaw> law, const Plan& plan, int64_t vocabulary);

}  // namespace train_qat
