// Laws of random coefficients, and their files.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "model/plan/scaling_law.h"

namespace train_qat::test {

// Another one each time; say it with INFO, so that a failure can be had again.
inline uint64_t fresh_seed() {
    return std::random_device{}();
}

inline double uniform(std::mt19937_64& random, double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
}

// With its least loss between the ends of the fraction, at sizes around 1M parameters.
inline LossCoefficients random_coefficients(std::mt19937_64& random) {
    LossCoefficients law;
    law.alpha = uniform(random, 0.5, 3), law.beta = uniform(random, 100, 3000);
    law.gamma = uniform(random, 0.3, 0.6), law.zeta = uniform(random, 10, 300);
    law.eta = uniform(random, 0.2, 0.5), law.theta = uniform(random, 0.1, 2);
    law.kappa = uniform(random, 0.5, 2), law.phi = uniform(random, 0.1, 2);
    law.chi = uniform(random, 0.2, 1), law.psi = uniform(random, 0, 0.2);
    law.omega = uniform(random, 0.1, 0.8), law.lambda = uniform(random, 0.1, 3);
    law.mu = uniform(random, 0.2, 1), law.nu = uniform(random, 0, 0.2);
    law.xi = uniform(random, 0.1, 0.8), law.rho = uniform(random, 0.1, 0.8);
    return law;
}

inline ScalingLaw random_law(std::mt19937_64& random, size_t samples = 25) {
    ScalingLaw law;
    law.path = "law.json";
    law.fitted = {480,      1024,        "classic",          {250e3, 1e6}, {1.5e6, 2.5e7},
                  {6, 786}, {0.03, 0.7}, {1, 1.58, 2, 4, 6}, FullPrecisionRuns{{300e3, 9e5}, {2e6, 1e7}}};
    law.coefficients = random_coefficients(random);
    for (size_t i = 0; i < samples; ++i)
        law.samples.push_back(
            {random_coefficients(random), uniform(random, -0.02, 0.02), uniform(random, -0.05, 0.05),
             uniform(random, -0.5, 0.5)});
    law.fraction_constant = uniform(random, 3, 8);
    for (size_t i = 0; i < samples + 3; ++i)
        law.fraction_samples.push_back({uniform(random, 3, 8), uniform(random, -0.5, 0.5)});
    law.fraction_by_loss = random() % 2 == 0;
    return law;
}

// As scripts/scaling_law.py writes it.
inline nlohmann::ordered_json json_of(const ScalingLaw& law) {
    const auto range = [](FittedRange ends) { return nlohmann::ordered_json{ends.low, ends.high}; };
    nlohmann::ordered_json coefficients, bootstrap, of_fraction, full_precision;
    for (const CoefficientName& name : coefficient_names) {
        coefficients[name.name] = law.coefficients.*name.value;
        for (const LossCoefficients& sample : law.samples) bootstrap[name.name].push_back(sample.*name.value);
    }
    for (const LossSample& sample : law.samples) {
        bootstrap["loss_misfit"].push_back(sample.loss_misfit);
        bootstrap["full_precision_misfit"].push_back(sample.full_precision_misfit);
        bootstrap["fraction_misfit"].push_back(sample.fraction_misfit);
    }
    for (const FractionSample& sample : law.fraction_samples) {
        of_fraction["a"].push_back(sample.constant);
        of_fraction["misfit"].push_back(sample.misfit);
    }
    if (law.fitted.full_precision)
        full_precision = {{"parameters", range(law.fitted.full_precision->parameters)},
                          {"tokens", range(law.fitted.full_precision->tokens)}};
    return {{"format", "train_qat scaling law 2"},
            {"source",
             {{"runs", law.fitted.runs},
              {"vocabulary", law.fitted.vocabulary},
              {"data", {"0123456789abcdef"}},
              {"cooldown", law.fitted.cooldown}}},
            {"fitted_range",
             {{"parameters", range(law.fitted.parameters)},
              {"tokens", range(law.fitted.tokens)},
              {"tokens_per_parameter_byte", range(law.fitted.tokens_per_parameter_byte)},
              {"qat_fraction", range(law.fitted.qat_fraction)},
              {"bits", law.fitted.bits},
              {"full_precision", full_precision}}},
            {"loss_law", {{"coefficients", coefficients}, {"bootstrap", bootstrap}}},
            {"fraction_law", {{"a", law.fraction_constant}, {"bootstrap", of_fraction}}},
            {"optimal_fraction", law.fraction_by_loss ? "loss_law" : "fraction_law"}};
}

}  // namespace train_qat::test
