#include "model/plan/scaling_law.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "model/plan/plan.h"
#include "model/units.h"

namespace train_qat {
namespace {

// coefficient * exp(log_factor): fitted coefficients may be huge where their powers are tiny.
double term(double coefficient, double log_factor) {
    return coefficient == 0 ? 0 : std::exp(std::log(coefficient) + log_factor);
}

// -exponent * log(value), where 0 to the power of 0 is 1.
double log_power(double exponent, double log_value) {
    return exponent == 0 ? 0 : -exponent * log_value;
}

// What the fraction decides of the loss: the logarithms of two terms at S_fp = S_qat = S, and their exponents.
struct FractionTerms {
    double by_qat, by_both;  // logarithms; minus infinity: no such term
    double omega, xi, rho;

    FractionTerms(const LossCoefficients& law, double parameters, double tokens, double bits)
        : omega(law.omega), xi(law.xi), rho(law.rho) {
        const double log_n = std::log(parameters);
        const double log_s = std::log(tokens_per_parameter_byte(tokens, parameters, bits));
        by_qat = std::log(law.phi) - law.chi * bits * std::numbers::ln2 - law.psi * log_n - omega * log_s;
        by_both =
            std::log(law.lambda) - law.mu * bits * std::numbers::ln2 - law.nu * log_n - (xi + rho) * log_s;
    }

    // At f = 1/(1+exp(-x)).
    double operator()(double x) const {
        const double log_f = -std::log1p(std::exp(-x)), log_rest = -std::log1p(std::exp(x));
        return std::exp(by_qat - omega * log_f) + std::exp(by_both - xi * log_rest - rho * log_f);
    }
};

template <typename Function>
double golden_section(const Function& loss, double low, double high, double tolerance) {
    constexpr double ratio = 1 / std::numbers::phi;
    double left = high - ratio * (high - low), right = low + ratio * (high - low);
    double at_left = loss(left), at_right = loss(right);
    while (high - low > tolerance) {
        if (at_left < at_right) {
            high = right, right = left, at_right = at_left;
            left = high - ratio * (high - low);
            at_left = loss(left);
        } else {
            low = left, left = right, at_left = at_right;
            right = low + ratio * (high - low);
            at_right = loss(right);
        }
    }
    return 0.5 * (low + high);
}

template <typename Sample, typename Function>
Prediction predict(double value, const std::vector<Sample>& samples, const Function& of_sample) {
    std::vector<double> values;
    values.reserve(samples.size());
    for (const Sample& sample : samples) values.push_back(of_sample(sample));
    return {value, percentile(values, 5), percentile(values, 95)};
}

// A fraction whose logit is off by `misfit`; 0 and 1 stay.
double moved(double fraction, double misfit) {
    return 1 / (1 + std::exp(-misfit) * (1 - fraction) / fraction);
}

std::string short_number(double value) {
    return value >= 1000 ? format_count(std::llround(value)) : formatted("%.4g", value);
}

void add_outside(std::vector<std::string>& found, const std::string& name, double value, FittedRange range) {
    constexpr double tolerance = 0.01;  // budgets are whole steps
    if (value >= range.low * (1 - tolerance) && value <= range.high * (1 + tolerance)) return;
    const bool above = value > range.high;
    const double end = above ? range.high : range.low;
    std::string shown = short_number(value), shown_end = short_number(end);
    if (shown == shown_end) shown = formatted("%.10g", value), shown_end = formatted("%.10g", end);
    found.push_back(name + " " + shown + (above ? " is above the " : " is below the ") + shown_end +
                    " fitted");
}

}  // namespace

double full_precision_loss(const LossCoefficients& law, double parameters, double tokens) {
    return law.alpha + term(law.beta, -law.gamma * std::log(tokens)) +
           term(law.zeta, -law.eta * std::log(parameters));
}

double quantized_loss(const LossCoefficients& law, double parameters, double fp_tokens, double qat_tokens,
                      double bits) {
    const double log_n = std::log(parameters), log_bits = bits * std::numbers::ln2;
    const double log_s_fp = std::log(tokens_per_parameter_byte(fp_tokens, parameters, bits));
    const double log_s_qat = std::log(tokens_per_parameter_byte(qat_tokens, parameters, bits));
    return full_precision_loss(law, parameters, fp_tokens + qat_tokens) +
           term(law.theta, -law.kappa * log_bits) +
           term(law.phi, -law.chi * log_bits - law.psi * log_n + log_power(law.omega, log_s_qat)) +
           term(law.lambda, -law.mu * log_bits - law.nu * log_n + log_power(law.xi, log_s_fp) +
                                log_power(law.rho, log_s_qat));
}

double optimal_fraction(const LossCoefficients& law, double parameters, double tokens, double bits) {
    constexpr int points = 201;
    constexpr double largest = 7, step = 2 * largest / (points - 1), tolerance = 1e-10;
    const FractionTerms loss(law, parameters, tokens, bits);
    const auto point = [](int i) { return -largest + step * i; };
    int best = 0;
    double least = loss(point(0));
    for (int i = 1; i < points; ++i)
        if (const double value = loss(point(i)); value < least) least = value, best = i;
    const double x =
        golden_section(loss, point(std::max(best - 1, 0)), point(std::min(best + 1, points - 1)), tolerance);
    return 1 / (1 + std::exp(-x));
}

double percentile(std::vector<double> values, double percent) {
    if (values.empty()) throw std::logic_error("percentile: of no values");
    std::sort(values.begin(), values.end());
    const double position = percent / 100 * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(position);
    const double low = values[below], high = values[std::min(below + 1, values.size() - 1)];
    const double share = position - static_cast<double>(below);
    return share == 0 || low == high ? low : low + share * (high - low);
}

void ScalingLaw::check_size(double parameters) const {
    constexpr double same = 0.1;
    const FittedRange range = fitted.parameters;
    if (range.low < range.high || std::abs(parameters / range.low - 1) <= same) return;
    throw std::runtime_error("-law " + path + ": was fitted on one size, " + short_number(range.low) +
                             " parameters, and says nothing of " + short_number(parameters) +
                             "; add sizes to the sweep that it is fitted on");
}

std::optional<Prediction> ScalingLaw::full_precision_loss(double parameters, double tokens) const {
    if (!fitted.full_precision) return std::nullopt;
    const auto of = [&](const LossCoefficients& law) {
        return train_qat::full_precision_loss(law, parameters, tokens);
    };
    return predict(of(coefficients), samples, [&](const LossSample& sample) {
        return of(sample) * std::exp(sample.full_precision_misfit);
    });
}

Prediction ScalingLaw::loss(double parameters, double tokens, double bits, double fraction) const {
    const auto of = [&](const LossCoefficients& law) {
        return quantized_loss(law, parameters, (1 - fraction) * tokens, fraction * tokens, bits);
    };
    return predict(of(coefficients), samples,
                   [&](const LossSample& sample) { return of(sample) * std::exp(sample.loss_misfit); });
}

std::optional<double> ScalingLaw::optimal_fraction(double parameters, double tokens, double bits) const {
    if (fraction_by_loss) return train_qat::optimal_fraction(coefficients, parameters, tokens, bits);
    const double s = tokens_per_parameter_byte(tokens, parameters, bits);
    if (!(s > 1)) return std::nullopt;
    return optimal_qat_fraction(s, fraction_constant);
}

std::optional<Prediction> ScalingLaw::optimal_fraction_interval(double parameters, double tokens,
                                                                double bits) const {
    const std::optional<double> value = optimal_fraction(parameters, tokens, bits);
    if (!value) return std::nullopt;
    if (!fraction_by_loss) {
        const double s = tokens_per_parameter_byte(tokens, parameters, bits);
        return predict(*value, fraction_samples, [&](const FractionSample& sample) {
            return moved(optimal_qat_fraction(s, sample.constant), sample.misfit);
        });
    }
    return predict(*value, samples, [&](const LossSample& sample) {
        return moved(train_qat::optimal_fraction(sample, parameters, tokens, bits), sample.fraction_misfit);
    });
}

std::vector<std::string> extrapolations(const FittedRuns& fitted, double parameters, double tokens,
                                        double bits, std::optional<double> fraction) {
    std::vector<std::string> found;
    add_outside(found, "N", parameters, fitted.parameters);
    add_outside(found, "D", tokens, fitted.tokens);
    if (bits == 16 || !fraction) return found;
    add_outside(found, "S", tokens_per_parameter_byte(tokens, parameters, bits),
                fitted.tokens_per_parameter_byte);
    add_outside(found, "B", bits, {fitted.bits.front(), fitted.bits.back()});
    add_outside(found, "fraction", *fraction, fitted.qat_fraction);
    return found;
}

std::vector<std::string> full_precision_extrapolations(const FittedRuns& fitted, double parameters,
                                                       double tokens) {
    std::vector<std::string> found;
    if (!fitted.full_precision) return found;
    add_outside(found, "N in full precision", parameters, fitted.full_precision->parameters);
    add_outside(found, "D in full precision", tokens, fitted.full_precision->tokens);
    return found;
}

}  // namespace train_qat
