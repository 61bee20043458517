#include "model/plan/predictions.h"

#include <algorithm>
#include <cmath>

#include "model/plan/plan.h"

namespace train_qat {
namespace {

std::optional<Prediction> finite_loss(const ScalingLaw& law, const Plan& plan, double fraction) {
    const Prediction loss = law.loss(static_cast<double>(plan.parameters), static_cast<double>(plan.tokens()),
                                     plan.bits, fraction);
    return std::isfinite(loss.value) ? std::optional(loss) : std::nullopt;
}

// Losses over another vocabulary are other numbers, and with another cooldown the best fraction is another.
void add_other_conditions(const FittedRuns& fitted, const Plan& plan, int64_t vocabulary,
                          std::vector<std::string>& found) {
    if (vocabulary != fitted.vocabulary)
        found.push_back("vocabulary " + std::to_string(vocabulary) + " is not the " +
                        std::to_string(fitted.vocabulary) + " fitted");
    const bool one_cooldown = fitted.cooldown == "classic" || fitted.cooldown == "fused";
    const bool switches = plan.fp_steps > 0 && plan.qat_steps > 0;
    if (one_cooldown && switches && to_string(plan.cooldown) != fitted.cooldown)
        found.push_back("cooldown " + to_string(plan.cooldown) + " is not the " + fitted.cooldown +
                        " fitted");
}

}  // namespace

LawPredictions predict(std::shared_ptr<const ScalingLaw> law, const Plan& plan, int64_t vocabulary) {
    const auto parameters = static_cast<double>(plan.parameters), tokens = static_cast<double>(plan.tokens());
    law->check_size(parameters);
    LawPredictions found;
    found.full_precision = law->full_precision_loss(parameters, tokens);
    std::optional<double> used;
    if (plan.bits < 16) {
        used = plan.qat_fraction;
        found.optimal_fraction = law->optimal_fraction_interval(parameters, tokens, plan.bits);
        if (found.optimal_fraction) found.at_optimal = finite_loss(*law, plan, found.optimal_fraction->value);
        found.at_used = finite_loss(*law, plan, *used);
        found.at_ten_percent = finite_loss(*law, plan, 0.1);
    }
    found.extrapolated = extrapolations(law->fitted, parameters, tokens, plan.bits, used);
    if (found.optimal_fraction && found.optimal_fraction->value != *used)
        for (const std::string& what :
             extrapolations(law->fitted, parameters, tokens, plan.bits, found.optimal_fraction->value))
            if (what.starts_with("fraction")) found.extrapolated.push_back("optimal " + what);
    for (const std::string& what : full_precision_extrapolations(law->fitted, parameters, tokens))
        found.extrapolated.push_back(what);
    add_other_conditions(law->fitted, plan, vocabulary, found.extrapolated);
    found.law = std::move(law);
    return found;
}

}  // namespace train_qat
