// The loss law: what loss N parameters reach that train on D_fp tokens in full precision and then on D_qat
// tokens quantized to B bits, and which fraction of the tokens is best quantized. The form is that of
// Compute-Optimal Quantization-Aware Training (arXiv 2509.22935); the coefficients are fitted on runs of one's own
// (scripts/scaling_law.py), with bootstrap samples of them that say how sure a prediction is.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace train_qat {

// All at least 0; 0 drops a term, or its dependence. With D = D_fp + D_qat, S = D / (N*B/8), and S_fp and S_qat the
// same of D_fp and D_qat:
//   L = alpha + beta/D^gamma + zeta/N^eta                                    in full precision, and more:
//     + theta*2^(-kappa*B) + phi*2^(-chi*B) / (N^psi * S_qat^omega)
//     + lambda*2^(-mu*B) / (N^nu * S_fp^xi * S_qat^rho)
struct LossCoefficients {
    double alpha = 0, beta = 0, gamma = 0, zeta = 0, eta = 0;
    double theta = 0, kappa = 0, phi = 0, chi = 0, psi = 0, omega = 0;
    double lambda = 0, mu = 0, nu = 0, xi = 0, rho = 0;
};

struct CoefficientName {
    const char* name;
    double LossCoefficients::*value;
};
inline constexpr std::array<CoefficientName, 16> coefficient_names = {{{"alpha", &LossCoefficients::alpha},
                                                                       {"beta", &LossCoefficients::beta},
                                                                       {"gamma", &LossCoefficients::gamma},
                                                                       {"zeta", &LossCoefficients::zeta},
                                                                       {"eta", &LossCoefficients::eta},
                                                                       {"theta", &LossCoefficients::theta},
                                                                       {"kappa", &LossCoefficients::kappa},
                                                                       {"phi", &LossCoefficients::phi},
                                                                       {"chi", &LossCoefficients::chi},
                                                                       {"psi", &LossCoefficients::psi},
                                                                       {"omega", &LossCoefficients::omega},
                                                                       {"lambda", &LossCoefficients::lambda},
                                                                       {"mu", &LossCoefficients::mu},
                                                                       {"nu", &LossCoefficients::nu},
                                                                       {"xi", &LossCoefficients::xi},
                                                                       {"rho", &LossCoefficients::rho}}};

// The loss in full precision of N parameters after D tokens, both positive.
double full_precision_loss(const LossCoefficients& law, double parameters, double tokens);

// The loss of B bits. Infinite where the law divides by tokens of a kind that there are none of.
double quantized_loss(const LossCoefficients& law, double parameters, double fp_tokens, double qat_tokens,
                      double bits);

// The f in (0, 1) with the least quantized_loss at (1-f)*D and f*D tokens: of f = 1/(1+exp(-x)) the best x of 201
// from -7 to 7 (the first of equal ones), then a golden-section search between its neighbours, to 1e-10 in x.
double optimal_fraction(const LossCoefficients& law, double parameters, double tokens, double bits);

// A value, and the 5th and 95th percentile of what the bootstrap samples say: a 90% interval.
struct Prediction {
    double value = 0, low = 0, high = 0;
};

// By linear interpolation between order statistics, as numpy.percentile; percent from 0 to 100. The order of `values`
// is lost.
double percentile(std::vector<double> values, double percent);

struct FittedRange {
    double low = 0, high = 0;
};

struct FullPrecisionRuns {
    FittedRange parameters, tokens;
};

// What a law was fitted on.
struct FittedRuns {
    int64_t runs = 0, vocabulary = 0;
    std::string cooldown;  // as -cooldown; any other text: not only one of them
    FittedRange parameters, tokens, tokens_per_parameter_byte, qat_fraction;
    std::vector<double> bits;  // ascending
    std::optional<FullPrecisionRuns> full_precision;  // nothing: no run of 16 bits
};

// A refit to resampled runs, and how far off the law was in one of the fitted cells, as it may be in any other: by what
// the logarithm of the loss, quantized or in full precision, and the logit of f* differ.
struct LossSample : LossCoefficients {
    double loss_misfit = 0, full_precision_misfit = 0, fraction_misfit = 0;
};

struct FractionSample {
    double constant = 0, misfit = 0;
};

// The law as a file holds it (model/job/law_file.h).
struct ScalingLaw {
    std::string path;
    FittedRuns fitted;
    LossCoefficients coefficients;
    std::vector<LossSample> samples;
    // f* = exp(-a / ln S) for S > 1: see optimal_qat_fraction.
    double fraction_constant = 0;
    std::vector<FractionSample> fraction_samples;
    // Which of the two f* are: the least loss of the loss law, or the one-constant law.
    bool fraction_by_loss = true;

    // std::runtime_error of one line: this is no size that a law of only one size knows.
    void check_size(double parameters) const;

    // Nothing: fitted on no run in full precision.
    std::optional<Prediction> full_precision_loss(double parameters, double tokens) const;
    Prediction loss(double parameters, double tokens, double bits, double fraction) const;

    // f* of the law that is to be used; nothing at S <= 1 if that is the one-constant law.
    std::optional<double> optimal_fraction(double parameters, double tokens, double bits) const;
    std::optional<Prediction> optimal_fraction_interval(double parameters, double tokens, double bits) const;
};

// In words what of N, D, S, B and the QAT fraction lies outside of what was fitted, by more than 1%: "N 396.0M is above
// the 1.0M fitted". 16 bits or no fraction: N and D alone, which are all that matters in full precision.
std::vector<std::string> extrapolations(const FittedRuns& fitted, double parameters, double tokens,
                                        double bits, std::optional<double> fraction);

// The same of the runs in full precision: "N in full precision 396.0M is ...".
std::vector<std::string> full_precision_extrapolations(const FittedRuns& fitted, double parameters,
                                                       double tokens);

}  // namespace train_qat
