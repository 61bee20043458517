// The text of -plan.

#include <cmath>

#include "model/plan/plan.h"
#include "model/plan/schedule.h"
#include "model/units.h"

namespace train_qat {
namespace {

std::string row(const char* name, const std::string& value) {
    return formatted("  %-17s ", name) + value + "\n";
}

std::string with_interval(const Prediction& prediction) {
    return formatted("%.4f [%.4f, %.4f]", prediction.value, prediction.low, prediction.high);
}

std::string optimal_fraction_text(const Plan& plan, const LawPredictions& predictions) {
    if (plan.bits == 16.0) return "none (16 bits: no QAT)";
    if (!predictions.optimal_fraction) return "none (the fraction law needs S > 1), overridden";
    return with_interval(*predictions.optimal_fraction) +
           (predictions.law->fraction_by_loss ? " by the loss law, " : " by the fraction law, ") +
           (plan.fraction_was_auto ? "used" : "overridden");
}

// What a law of one's own predicts.
std::string predictions_text(const Plan& plan, const LawPredictions& predictions) {
    const FittedRuns& fitted = predictions.law->fitted;
    const auto count = [](double number) { return format_count(std::llround(number)); };
    std::vector<std::string> losses;
    const auto add = [&losses](const std::optional<Prediction>& loss, double fraction,
                               const std::string& where) {
        const std::string at = where + formatted(" %.4f", fraction);
        losses.push_back(loss ? with_interval(*loss) + at
                              : "none" + at + ": the law needs tokens of both kinds");
    };
    if (predictions.optimal_fraction)
        add(predictions.at_optimal, predictions.optimal_fraction->value, " at the optimal fraction");
    if (plan.bits < 16 && !plan.fraction_was_auto)
        add(predictions.at_used, plan.qat_fraction, " at the fraction");
    if (predictions.at_ten_percent) losses.push_back(with_interval(*predictions.at_ten_percent) + " at 10%");
    losses.push_back(predictions.full_precision
                         ? with_interval(*predictions.full_precision) + " in full precision"
                         : "none in full precision: no fitted run was");

    std::string text = row("loss law", predictions.law->path + ": " + std::to_string(fitted.runs) +
                                           " runs, " + count(fitted.parameters.low) + " to " +
                                           count(fitted.parameters.high) + " parameters");
    text += row("optimal fraction", optimal_fraction_text(plan, predictions));
    for (size_t i = 0; i < losses.size(); ++i) text += row(i == 0 ? "predicted loss" : "", losses[i]);
    text += row("", "[low, high] are 90% intervals");
    std::string extrapolated;
    for (const std::string& what : predictions.extrapolated)
        extrapolated += (extrapolated.empty() ? "" : ", ") + what;
    return text + row("extrapolated", extrapolated.empty() ? "nothing" : extrapolated);
}

std::string used_fraction_text(const Plan& plan) {
    return row("QAT fraction",
               formatted("%.4f", plan.qat_fraction) + (plan.fraction_was_auto ? "" : " (as given)"));
}

std::string fraction_text(const Plan& plan) {
    if (plan.predictions)
        return predictions_text(plan, *plan.predictions) +
               (plan.bits == 16.0 ? "" : used_fraction_text(plan));
    if (plan.bits == 16.0) return row("optimal fraction", "none (16 bits: no QAT)");
    std::string predicted = "none (the law needs S > 1)";
    if (plan.predicted_fraction) {
        predicted = formatted("%.4f = exp(-%.4f / ln S), %s", *plan.predicted_fraction, qat_fraction_constant,
                              plan.fraction_was_auto ? "used" : "overridden");
    }
    return row("optimal fraction", predicted) + used_fraction_text(plan);
}

std::string phase_row(Phase phase, int64_t first, int64_t steps, const Plan& plan, double flops_per_token) {
    const double tokens = static_cast<double>(steps) * static_cast<double>(plan.tokens_per_step);
    std::string range = "none";
    if (steps > 0) {
        range =
            formatted("[%lld, %lld)", static_cast<long long>(first), static_cast<long long>(first + steps));
    }
    return formatted("  %-5s %22s %12lld %10s %7.2f%% %12.3e\n", to_string(phase).c_str(), range.c_str(),
                     static_cast<long long>(steps), format_count(static_cast<int64_t>(tokens)).c_str(),
                     100.0 * static_cast<double>(steps) / static_cast<double>(plan.total_steps),
                     tokens * flops_per_token);
}

std::string phase_table(const Plan& plan, double flops_per_token) {
    const double flops = static_cast<double>(plan.tokens()) * flops_per_token;
    std::string text =
        formatted("  %-5s %22s %12s %10s %8s %12s\n", "phase", "steps", "count", "tokens", "share", "FLOP");
    text += phase_row(Phase::full_precision, 0, plan.fp_steps, plan, flops_per_token);
    text += phase_row(Phase::quantization_aware, plan.fp_steps, plan.qat_steps, plan, flops_per_token);
    return text + formatted("  %-5s %22s %12lld %10s %7.2f%% %12.3e\n", "total", "",
                            static_cast<long long>(plan.total_steps), format_count(plan.tokens()).c_str(),
                            100.0, flops);
}

std::string cooldown_text(const Plan& plan) {
    if (plan.fp_steps == 0) return "one, at the end (all steps are QAT)";
    if (plan.qat_steps == 0) return "one, at the end (all steps are FP)";
    std::string text = to_string(plan.cooldown);
    if (!plan.cooldown_was_auto) return text + " (as given)";
    if (plan.predictions && plan.predictions->law->fitted.cooldown == text)
        return text + " (auto: that of the runs the law was fitted on)";
    return text + (plan.cooldown == Cooldown::fused
                       ? " (auto: fusing cooldown and QAT helps from 3 bits up)"
                       : " (auto: below 3 bits fusing cooldown and QAT does not help)");
}

std::string milestone_table(const Plan& plan) {
    std::string text = formatted("  %12s %14s\n", "step", "learning rate");
    for (const Milestone& milestone : milestones(plan)) {
        text += formatted("  %12lld %14.3e  %s\n", static_cast<long long>(milestone.step),
                          milestone.learning_rate, milestone.label.c_str());
    }
    return text;
}

}  // namespace

std::string format_plan(const Plan& plan, const ModelConfig& config) {
    std::string text = "plan\n";
    text += row("parameters N", format_exact(plan.parameters) + " (" + format_count(plan.parameters) + ")");
    text += row("tokens D", format_exact(plan.tokens()) + " (" + format_count(plan.tokens()) + ", " +
                                formatted("%.1f", static_cast<double>(plan.tokens()) /
                                                      static_cast<double>(plan.parameters)) +
                                " per parameter" + (plan.tokens_were_auto ? "; -tokens sets them)" : ")"));
    text += row("tokens per step", format_exact(plan.tokens_per_step));
    text += row("bits B", format_bits(plan.bits));
    text +=
        row("S = D / (N B/8)", formatted("%.4g tokens per parameter byte", plan.tokens_per_parameter_byte));
    text += fraction_text(plan);
    text += row("schedule", to_string(plan.schedule));
    text += row("cooldown", cooldown_text(plan));
    text += phase_table(plan, training_flops_per_token(config));
    text += milestone_table(plan);
    for (const std::string& note : plan.notes) text += "  note: " + note + "\n";
    return text;
}

}  // namespace train_qat
