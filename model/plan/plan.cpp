#include "model/plan/plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/quantizer.h"
#include "model/units.h"

namespace train_qat {
namespace {

constexpr double unquantized_bits = 16.0;
constexpr double least_trusted_fraction = 0.02;

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error(message);
}

std::string number(double value) {
    return formatted("%.6g", value);
}

// Written so that NaN fails.
void check_range(double value, double low, double high, const std::string& flag) {
    if (!(value >= low && value <= high)) {
        fail(flag + " " + number(value) + ": must be from " + number(low) + " to " + number(high));
    }
}

void check_learning_rate(double value, const std::string& flag) {
    if (!(value > 0.0 && std::isfinite(value)))
        fail(flag + " " + number(value) + ": must be positive and finite");
}

void check_warmup(const std::optional<StepsOrFraction>& warmup, const std::string& flag) {
    if (!warmup) return;
    if (const auto* fraction = std::get_if<double>(&*warmup)) check_range(*fraction, 0.0, 1.0, flag);
    if (const auto* steps = std::get_if<int64_t>(&*warmup); steps && *steps < 0) {
        fail(flag + " " + std::to_string(*steps) + ": must not be negative");
    }
}

void check_request(const PlanRequest& request) {
    if (request.parameters < 1) throw std::logic_error("make_plan: parameters must be positive");
    if (request.tokens_per_step < 1) throw std::logic_error("make_plan: tokens_per_step must be positive");
    grid_of_bits(request.bits);  // refuses other numbers
    if (request.qat_fraction) check_range(*request.qat_fraction, 0.0, 1.0, "-qat_frac");
    if (request.bits == unquantized_bits && request.qat_fraction.value_or(0.0) > 0.0) {
        fail("-qat_frac " + number(*request.qat_fraction) +
             ": -b 16 trains without quantization; give -qat_frac 0 or fewer bits");
    }
    check_learning_rate(request.learning_rate, "-lr");
    if (request.qat_learning_rate) check_learning_rate(*request.qat_learning_rate, "-qat_lr");
    check_range(request.final_learning_rate_fraction, 0.0, 1.0, "-final_lr_frac");
    check_warmup(request.warmup, "-warmup");
    check_warmup(request.qat_warmup, "-qat_warmup");
    if (request.cooldown_fraction) {
        check_range(*request.cooldown_fraction, 0.0, 1.0, "-cooldown_frac");
        if (request.schedule == Schedule::cosine) {
            fail(
                "-cooldown_frac: the cosine schedule decays over all steps after the warmup; drop it or give "
                "-schedule wsd");
        }
    }
}

void resolve_fraction(const PlanRequest& request, Plan& plan) {
    plan.tokens_per_parameter_byte = tokens_per_parameter_byte(
        static_cast<double>(plan.tokens()), static_cast<double>(plan.parameters), plan.bits);
    const bool quantizes = plan.bits != unquantized_bits;
    if (quantizes && request.law) {
        plan.predicted_fraction = request.law->optimal_fraction(
            static_cast<double>(plan.parameters), static_cast<double>(plan.tokens()), plan.bits);
    } else if (quantizes && plan.tokens_per_parameter_byte > 1.0) {
        plan.predicted_fraction = optimal_qat_fraction(plan.tokens_per_parameter_byte);
    }
    plan.fraction_was_auto = quantizes && !request.qat_fraction;
    if (plan.fraction_was_auto && !plan.predicted_fraction) {
        const double bytes = static_cast<double>(plan.parameters) * plan.bits / 8.0;
        fail("-qat_frac: no prediction for " + number(plan.tokens_per_parameter_byte) +
             " tokens per parameter byte (it needs more than 1): give -qat_frac, or train on more than " +
             format_count(static_cast<int64_t>(std::ceil(bytes))) + " tokens");
    }
    plan.qat_fraction = request.qat_fraction.value_or(plan.predicted_fraction.value_or(0.0));
}

void split_steps(const PlanRequest& request, Plan& plan) {
    plan.qat_steps = std::llround(plan.qat_fraction * static_cast<double>(plan.total_steps));
    if (plan.total_steps >= 2) {
        // Close to S = 1 the law's fraction underflows; whoever asks for bits still gets them.
        if (plan.qat_fraction > 0.0 || plan.fraction_was_auto)
            plan.qat_steps = std::max<int64_t>(plan.qat_steps, 1);
        if (plan.qat_fraction < 1.0) plan.qat_steps = std::min(plan.qat_steps, plan.total_steps - 1);
    }
    plan.fp_steps = plan.total_steps - plan.qat_steps;
    // Of a law of one's own its fitted range says more.
    if (!request.law && plan.fraction_was_auto && plan.qat_fraction < least_trusted_fraction) {
        plan.notes.push_back("the law's fraction " + number(plan.qat_fraction) +
                             " is far below those reported for it (0.05 and more): consider -qat_frac 0.1");
    }
}

Cooldown automatic_cooldown(const PlanRequest& request) {
    // A law's f* and losses hold for the cooldown of the runs it was fitted on.
    const std::string fitted = request.law ? request.law->fitted.cooldown : "";
    if (fitted == "classic") return Cooldown::classic;
    if (fitted == "fused") return Cooldown::fused;
    return request.bits >= fused_from_bits ? Cooldown::fused : Cooldown::classic;
}

void resolve_cooldown(const PlanRequest& request, Plan& plan) {
    plan.schedule = request.schedule;
    plan.cooldown_was_auto = request.cooldown == Cooldown::automatic;
    plan.cooldown = plan.cooldown_was_auto ? automatic_cooldown(request) : request.cooldown;
    plan.learning_rate = request.learning_rate;
    plan.qat_learning_rate = request.qat_learning_rate.value_or(request.learning_rate);
    plan.final_learning_rate_fraction = request.final_learning_rate_fraction;
    const std::string hint = plan.cooldown_was_auto
                                 ? " (chosen by -cooldown auto); drop it or give -cooldown classic"
                                 : "; drop it or give -cooldown classic";
    const bool fused_switch = plan.fp_steps > 0 && plan.qat_steps > 0 && !plan.has_two_decays();
    if (fused_switch && request.qat_learning_rate && *request.qat_learning_rate != request.learning_rate) {
        fail("-qat_lr: a fused cooldown continues QAT at the learning rate of -lr" + hint);
    }
    if (plan.qat_steps == 0 && (request.qat_learning_rate || request.qat_warmup)) {
        plan.notes.push_back("-qat_lr and -qat_warmup have no effect: there are no QAT steps");
    }
    if (fused_switch && request.qat_warmup) fail("-qat_warmup: a fused cooldown has no second warmup" + hint);
}

int64_t to_steps(const StepsOrFraction& value, int64_t whole) {
    if (const auto* fraction = std::get_if<double>(&value)) {
        return std::llround(*fraction * static_cast<double>(whole));
    }
    return std::get<int64_t>(value);
}

int64_t shorten(int64_t wanted, int64_t available, const std::string& what, const std::string& range,
                Plan& plan) {
    if (wanted <= available) return wanted;
    plan.notes.push_back(what + " shortened from " + std::to_string(wanted) + " to " +
                         std::to_string(available) + " steps to fit into " + range);
    return available;
}

void resolve_curve(const PlanRequest& request, Plan& plan) {
    const bool pure_qat = plan.fp_steps == 0;
    const int64_t warmup_range = pure_qat ? plan.qat_steps : plan.fp_steps;
    const std::string range = pure_qat ? "the QAT steps" : "the FP steps";
    const auto warmup = pure_qat && request.qat_warmup ? request.qat_warmup : request.warmup;
    plan.warmup_steps = shorten(to_steps(warmup.value_or(default_warmup_fraction), plan.total_steps),
                                warmup_range, "warmup", range, plan);
    const bool two = plan.has_two_decays();
    const int64_t decaying_range = two ? plan.fp_steps : plan.total_steps;
    const int64_t after_warmup = decaying_range - plan.warmup_steps;
    if (plan.schedule == Schedule::cosine) {
        plan.cooldown_steps = after_warmup;
    } else {
        const int64_t wanted =
            to_steps(request.cooldown_fraction.value_or(default_cooldown_fraction), decaying_range);
        const bool inside_qat = !two && plan.qat_steps > 0 && plan.fp_steps > 0;
        plan.cooldown_steps = shorten(wanted, inside_qat ? plan.qat_steps : after_warmup, "cooldown",
                                      inside_qat ? "the QAT steps" : range + " after the warmup", plan);
    }
    if (!two) return;
    plan.qat_warmup_steps =
        shorten(to_steps(request.qat_warmup.value_or(default_qat_warmup_fraction), plan.qat_steps),
                plan.qat_steps, "re-warmup", "the QAT steps", plan);
    plan.qat_cooldown_steps = plan.qat_steps - plan.qat_warmup_steps;
}

}  // namespace

double tokens_per_parameter_byte(double tokens, double parameters, double bits) {
    return tokens / (parameters * bits / 8.0);
}

double optimal_qat_fraction(double tokens_per_parameter_byte, double constant) {
    if (!(tokens_per_parameter_byte > 1.0)) {
        fail("-qat_frac: the optimal fraction is defined for more than 1 token per parameter byte, not for " +
             number(tokens_per_parameter_byte) + ": give -qat_frac or train on more tokens");
    }
    return std::exp(-constant / std::log(tokens_per_parameter_byte));
}

int64_t planned_steps(const PlanRequest& request) {
    if (request.tokens && request.steps) fail("-tokens and -steps: give one of them, not both");
    if (request.steps) {
        if (*request.steps < 1) fail("-steps " + std::to_string(*request.steps) + ": must be at least 1");
        if (*request.steps > INT64_MAX / 2 / request.tokens_per_step)
            fail("-steps: too many tokens to count");
        return *request.steps;
    }
    const int64_t tokens = request.tokens.value_or(
        std::max(default_tokens_per_parameter * request.parameters, request.tokens_per_step));
    if (tokens < request.tokens_per_step) {
        fail("-tokens " + format_count(tokens) + ": less than one step of " +
             std::to_string(request.tokens_per_step) + " tokens; give more tokens or a smaller batch");
    }
    const int64_t remainder = tokens % request.tokens_per_step;
    return tokens / request.tokens_per_step + (remainder >= request.tokens_per_step - remainder ? 1 : 0);
}

Plan make_plan(const PlanRequest& request) {
    check_request(request);
    Plan plan;
    plan.parameters = request.parameters;
    plan.tokens_per_step = request.tokens_per_step;
    plan.bits = request.bits;
    plan.total_steps = planned_steps(request);
    plan.tokens_were_auto = !request.tokens && !request.steps;
    resolve_fraction(request, plan);
    split_steps(request, plan);
    resolve_cooldown(request, plan);
    resolve_curve(request, plan);
    return plan;
}

std::string to_string(Schedule schedule) {
    return schedule == Schedule::wsd ? "wsd" : "cosine";
}

std::string to_string(Cooldown cooldown) {
    if (cooldown == Cooldown::automatic) return "auto";
    return cooldown == Cooldown::fused ? "fused" : "classic";
}

std::string to_string(Phase phase) {
    return phase == Phase::full_precision ? "FP" : "QAT";
}

Schedule parse_schedule(const std::string& text, const std::string& flag) {
    if (text == "wsd") return Schedule::wsd;
    if (text == "cosine") return Schedule::cosine;
    fail(flag + " " + text + ": must be wsd or cosine");
}

Cooldown parse_cooldown(const std::string& text, const std::string& flag) {
    if (text == "fused") return Cooldown::fused;
    if (text == "classic") return Cooldown::classic;
    if (text == "auto") return Cooldown::automatic;
    fail(flag + " " + text + ": must be fused, classic or auto");
}

StepsOrFraction parse_steps_or_fraction(const std::string& text, const std::string& flag) {
    const bool plain = text.find_first_not_of("0123456789.") == std::string::npos;  // no sign, no exponent
    if (plain && text.find('.') == std::string::npos) {
        if (const auto steps = parse_number<int64_t>(text)) return *steps;
    } else if (plain) {
        if (const auto fraction = parse_number<double>(text); fraction && *fraction <= 1.0) return *fraction;
    }
    fail(flag + ": cannot read '" + text +
         "': expected a number of steps such as 200, or a fraction such as 0.02");
}

std::string format_bits(double bits) {
    return number(bits);
}

std::string bits_with_unit(double bits) {
    return format_bits(bits) + (bits == 1 ? " bit" : " bits");
}

}  // namespace train_qat
