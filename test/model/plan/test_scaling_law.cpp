// The loss law: its formula, the optimal fraction, intervals, and what it says of a plan.
#include "model/plan/scaling_law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "model/plan/plan.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/random_law.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

using Real = long double;

// The formula as it is printed, with powers.
Real loss_as_printed(const LossCoefficients& c, Real n, Real d_fp, Real d_qat, Real b) {
    const Real s_fp = d_fp / (n * b / 8), s_qat = d_qat / (n * b / 8);
    return c.alpha + c.beta / std::pow(d_fp + d_qat, Real(c.gamma)) + c.zeta / std::pow(n, Real(c.eta)) +
           c.theta * std::pow(Real(2), -c.kappa * b) +
           c.phi * std::pow(Real(2), -c.chi * b) /
               (std::pow(n, Real(c.psi)) * std::pow(s_qat, Real(c.omega))) +
           c.lambda * std::pow(Real(2), -c.mu * b) /
               (std::pow(n, Real(c.nu)) * std::pow(s_fp, Real(c.xi)) * std::pow(s_qat, Real(c.rho)));
}

struct Point {
    double n, d, b, f;
};

Point random_point(std::mt19937_64& random) {
    constexpr double bits[] = {1, 1.58, 2, 3, 4, 5, 6, 8};
    return {std::exp(uniform(random, 11, 22)), std::exp(uniform(random, 14, 26)), bits[random() % 8],
            uniform(random, 0.01, 0.99)};
}

double loss_at(const LossCoefficients& law, const Point& p, double f) {
    return quantized_loss(law, p.n, (1 - f) * p.d, f * p.d, p.b);
}

}  // namespace

TEST_CASE("the loss law is the formula as printed", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 300; ++i) {
        LossCoefficients law = random_coefficients(random);
        // Some coefficients zero: simpler forms.
        for (const CoefficientName& name : coefficient_names)
            if (random() % 5 == 0) law.*name.value = 0;
        const Point p = random_point(random);
        const auto expected =
            static_cast<double>(loss_as_printed(law, p.n, (1 - p.f) * Real(p.d), p.f * Real(p.d), p.b));
        CHECK(loss_at(law, p, p.f) == Approx(expected).epsilon(1e-12));
        LossCoefficients plain = law;
        plain.theta = plain.phi = plain.lambda = 0;
        CHECK(full_precision_loss(law, p.n, p.d) == Approx(loss_at(plain, p, 0.5)).epsilon(1e-12));
    }
}

TEST_CASE("huge coefficients with large exponents do not overflow", "[scaling_law]") {
    LossCoefficients law;
    law.beta = 1e300, law.gamma = 40, law.zeta = 1e-300, law.eta = 0;
    law.phi = 1e305, law.chi = 200, law.psi = 10;
    const double n = 1e6, d = 1e8, b = 2;
    const Real expected = loss_as_printed(law, n, d / 2, d / 2, b);
    CHECK(full_precision_loss(law, n, d) == Approx(1e-20).epsilon(1e-9));
    CHECK(quantized_loss(law, n, d / 2, d / 2, b) == Approx(static_cast<double>(expected)).epsilon(1e-9));
}

TEST_CASE("without tokens of a kind a law that divides by them has no loss", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    LossCoefficients law = random_coefficients(random);
    const Point p = random_point(random);
    CHECK(std::isinf(loss_at(law, p, 0)));
    CHECK(std::isinf(loss_at(law, p, 1)));
    law.xi = 0;
    CHECK(std::isfinite(loss_at(law, p, 1)));
    CHECK(std::isinf(loss_at(law, p, 0)));
    law.lambda = law.omega = 0;
    CHECK(std::isfinite(loss_at(law, p, 0)));
}

TEST_CASE("more tokens and more bits never cost loss", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 100; ++i) {
        LossCoefficients law = random_coefficients(random);
        const Point p = random_point(random);
        Point longer = p;
        longer.d *= uniform(random, 1.01, 10);
        CHECK(loss_at(law, longer, p.f) < loss_at(law, p, p.f));
        CHECK(full_precision_loss(law, p.n * 2, p.d) < full_precision_loss(law, p.n, p.d));
        CHECK(full_precision_loss(law, p.n, p.d) < loss_at(law, p, p.f));
        // S shrinks with bits, so this needs terms that do not depend on it.
        law.omega = law.xi = law.rho = 0;
        Point wider = p;
        wider.b += 1;
        CHECK(loss_at(law, wider, p.f) < loss_at(law, p, p.f));
    }
}

TEST_CASE("the optimal fraction is that of a fine grid", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 10; ++i) {
        const LossCoefficients law = random_coefficients(random);
        const Point p = random_point(random);
        const double found = optimal_fraction(law, p.n, p.d, p.b);
        constexpr int points = 20'001;
        Real least = std::numeric_limits<Real>::infinity(), best = 0;
        for (int k = 0; k < points; ++k) {
            const Real x = -7 + 14 * Real(k) / (points - 1), f = 1 / (1 + std::exp(-x));
            const Real loss = loss_as_printed(law, p.n, (1 - f) * p.d, f * p.d, p.b);
            if (loss < least) least = loss, best = x;
        }
        CHECK(std::log(found / (1 - found)) == Approx(static_cast<double>(best)).margin(14.0 / (points - 1)));
        CHECK(loss_as_printed(law, p.n, (1 - found) * Real(p.d), found * Real(p.d), p.b) <=
              least * (1 + 1e-15L));
    }
}

TEST_CASE("where only one kind of tokens helps the fraction ends at its limits", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const Point p = random_point(random);
    LossCoefficients law = random_coefficients(random);
    law.xi = 0;
    CHECK(optimal_fraction(law, p.n, p.d, p.b) == Approx(1 / (1 + std::exp(-7.0))).epsilon(1e-8));
    law = random_coefficients(random);
    law.omega = law.rho = 0;
    CHECK(optimal_fraction(law, p.n, p.d, p.b) == Approx(1 / (1 + std::exp(7.0))).epsilon(1e-8));
}

TEST_CASE("percentiles are interpolated as numpy does", "[scaling_law]") {
    // numpy.percentile([3, 1, 2, 10, 7], [0, 5, 50, 62.5, 95, 100])
    const std::vector<double> values = {3, 1, 2, 10, 7};
    for (const auto& [percent, expected] :
         {std::pair{0.0, 1.0}, {5.0, 1.2}, {50.0, 3.0}, {62.5, 5.0}, {95.0, 9.4}, {100.0, 10.0}})
        CHECK(percentile(values, percent) == Approx(expected));
    CHECK(percentile({4.5}, 95) == 4.5);
    constexpr double infinity = std::numeric_limits<double>::infinity();
    CHECK(percentile({infinity, 1, infinity}, 95) == infinity);
    CHECK_THROWS_AS(percentile({}, 5), std::logic_error);
}

TEST_CASE("intervals are those of the samples", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random, 20 + random() % 50);
    const Point p = {uniform(random, 3e5, 1e6), uniform(random, 5e6, 2e7), 2, 0.3};
    std::vector<double> losses, full, fractions, constants;
    const auto moved = [](double fraction, double misfit) {
        const double logit = std::log(fraction / (1 - fraction)) + misfit;
        return 1 / (1 + std::exp(-logit));
    };
    for (const LossSample& sample : law.samples) {
        losses.push_back(loss_at(sample, p, p.f) * std::exp(sample.loss_misfit));
        full.push_back(full_precision_loss(sample, p.n, p.d) * std::exp(sample.full_precision_misfit));
        fractions.push_back(moved(optimal_fraction(sample, p.n, p.d, p.b), sample.fraction_misfit));
    }
    const double s = tokens_per_parameter_byte(p.d, p.n, p.b);
    for (const FractionSample& sample : law.fraction_samples)
        constants.push_back(moved(std::exp(-sample.constant / std::log(s)), sample.misfit));
    const auto check = [](const Prediction& found, double value, const std::vector<double>& samples) {
        CHECK(found.value == Approx(value));
        CHECK(found.low == Approx(percentile(samples, 5)));
        CHECK(found.high == Approx(percentile(samples, 95)));
    };
    check(law.loss(p.n, p.d, p.b, p.f), loss_at(law.coefficients, p, p.f), losses);
    check(law.full_precision_loss(p.n, p.d).value(), full_precision_loss(law.coefficients, p.n, p.d), full);
    law.fraction_by_loss = true;
    check(*law.optimal_fraction_interval(p.n, p.d, p.b), optimal_fraction(law.coefficients, p.n, p.d, p.b),
          fractions);
    law.fraction_by_loss = false;
    check(*law.optimal_fraction_interval(p.n, p.d, p.b), std::exp(-law.fraction_constant / std::log(s)),
          constants);
    // Hardly more than one token per parameter byte: no fraction at all, however far off the law is.
    CHECK(law.optimal_fraction_interval(1e6, 1.0001e6, 8)->high == 0);
}

TEST_CASE("a law says nothing of what no fitted run was", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random);
    CHECK(law.full_precision_loss(5e5, 1e7));
    law.fitted.full_precision = std::nullopt;
    CHECK_FALSE(law.full_precision_loss(5e5, 1e7));
    CHECK_NOTHROW(law.check_size(1e9));
    law.fitted.parameters = {5e5, 5e5};
    CHECK_NOTHROW(law.check_size(5.4e5));
    CHECK(mentions(error_of([&] { law.check_size(6e5); }), {"-law law.json", "one size", "500.0K", "600.0K"}));
}

TEST_CASE("the one-constant law needs more than one token per parameter byte, the loss law none",
          "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random);
    law.fraction_by_loss = false;
    CHECK_FALSE(law.optimal_fraction(1e6, 1e6, 8));
    CHECK_FALSE(law.optimal_fraction_interval(1e6, 1e6, 8));
    CHECK(law.optimal_fraction(1e6, 1.01e6, 8));
    law.fraction_by_loss = true;
    CHECK(*law.optimal_fraction(1e6, 1e5, 8) > 0);
}

TEST_CASE("extrapolation is said in words", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const FittedRuns fitted = random_law(random).fitted;
    using Words = std::vector<std::string>;
    CHECK(extrapolations(fitted, 5e5, 2e7, 4, 0.2).empty());
    CHECK(extrapolations(fitted, 1e6, 2.5e7, 5, 0.7).empty());  // both ends, and bits between fitted ones
    CHECK(extrapolations(fitted, 396e6, 2e7, 4, 0.2) ==
          Words{"N 396.0M is above the 1.0M fitted", "S 0.101 is below the 6 fitted"});
    CHECK(extrapolations(fitted, 2e5, 8e9, 8, 0.01) ==
          Words{"N 200.0K is below the 250.0K fitted", "D 8.0B is above the 25.0M fitted",
                "S 40.0K is above the 786 fitted", "B 8 is above the 6 fitted",
                "fraction 0.01 is below the 0.03 fitted"});
    // What counts in full precision.
    CHECK(extrapolations(fitted, 2e5, 2e7, 16, std::nullopt) == Words{"N 200.0K is below the 250.0K fitted"});
    CHECK(extrapolations(fitted, 1'009'000, 2.52e7, 16, std::nullopt).empty());  // budgets are whole steps
    CHECK(extrapolations(fitted, 1'020'000, 2e7, 16, std::nullopt) ==
          Words{"N 1020000 is above the 1000000 fitted"});
    CHECK(full_precision_extrapolations(fitted, 5e5, 5e6).empty());
    CHECK(full_precision_extrapolations(fitted, 2.6e5, 2e7) ==
          Words{"N in full precision 260.0K is below the 300.0K fitted",
                "D in full precision 20.0M is above the 10.0M fitted"});
}

namespace {

PlanRequest request_with(const ScalingLaw& law) {
    PlanRequest request;
    request.law = std::make_shared<const ScalingLaw>(law);
    request.parameters = 500'000;
    request.tokens_per_step = 1000;
    request.steps = 10'000;
    request.bits = 2;
    return request;
}

// The line that begins with this name.
std::string line_of(const std::string& text, const std::string& begin) {
    const size_t at = text.find("\n  " + begin);
    REQUIRE(at != std::string::npos);
    return text.substr(at + 3, text.find('\n', at + 1) - at - 3);
}

std::string plan_text(const PlanRequest& request) {
    Plan plan = make_plan(request);
    ModelConfig config = resolve_config("500K", 1024, 64);
    plan.predictions = predict(request.law, plan, config.vocabulary);
    return format_plan(plan, config);
}

}  // namespace

TEST_CASE("a plan takes its fraction from the law and prints what it predicts", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random);
    law.fraction_by_loss = true;
    law.fitted.qat_fraction = {0, 1};
    PlanRequest request = request_with(law);
    const Plan plan = make_plan(request);
    const double best = optimal_fraction(law.coefficients, 5e5, 1e7, 2);
    CHECK(plan.qat_fraction == best);
    CHECK(plan.qat_steps == std::llround(best * 10'000));

    const auto shown = [](const Prediction& p) {
        char text[64];
        std::snprintf(text, sizeof text, "%.4f [%.4f, %.4f]", p.value, p.low, p.high);
        return std::string(text);
    };
    std::string text = plan_text(request);
    CHECK(line_of(text, "loss law") == "loss law          law.json: 480 runs, 250.0K to 1.0M parameters");
    const Prediction fraction = *law.optimal_fraction_interval(5e5, 1e7, 2);
    CHECK(line_of(text, "optimal fraction") ==
          "optimal fraction  " + shown(fraction) + " by the loss law, used");
    char at[64];
    std::snprintf(at, sizeof at, " at the optimal fraction %.4f", best);
    CHECK(line_of(text, "predicted loss") == "predicted loss    " + shown(law.loss(5e5, 1e7, 2, best)) + at);
    CHECK(text.find("                    " + shown(law.loss(5e5, 1e7, 2, 0.1)) + " at 10%\n") !=
          std::string::npos);
    CHECK(text.find(shown(*law.full_precision_loss(5e5, 1e7)) + " in full precision\n") != std::string::npos);
    CHECK(text.find("at the fraction") == std::string::npos);
    CHECK(text.find("90%") != std::string::npos);
    CHECK(text.find("6.7297") == std::string::npos);

    request.qat_fraction = 0.25;
    text = plan_text(request);
    CHECK(line_of(text, "optimal fraction") ==
          "optimal fraction  " + shown(fraction) + " by the loss law, overridden");
    CHECK(text.find(shown(law.loss(5e5, 1e7, 2, 0.25)) + " at the fraction 0.2500\n") != std::string::npos);
    CHECK(line_of(text, "extrapolated") == "extrapolated      nothing");
    CHECK(line_of(text, "QAT fraction") == "QAT fraction      0.2500 (as given)");
    request.bits = 8;
    request.cooldown = Cooldown::fused;
    CHECK(line_of(plan_text(request), "extrapolated") ==
          "extrapolated      B 8 is above the 6 fitted, cooldown fused is not the classic fitted");

    // The fraction used was fitted, the optimal one was not.
    law.fitted.qat_fraction = {0.25, 0.25};
    request = request_with(law);
    request.qat_fraction = 0.25;
    CHECK(line_of(plan_text(request), "extrapolated").find("optimal fraction ") != std::string::npos);
    CHECK(line_of(plan_text(request), "extrapolated").ends_with(" the 0.25 fitted"));
}

TEST_CASE("an automatic cooldown is that of the law", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random);
    for (const double bits : {2.0, 4.0})
        for (const char* cooldown : {"classic", "fused", "classic, fused"}) {
            law.fitted.cooldown = cooldown;
            PlanRequest request = request_with(law);
            request.bits = bits;
            const bool fused = law.fitted.cooldown == "fused" || (law.fitted.cooldown != "classic" && bits > 3);
            CHECK(make_plan(request).cooldown == (fused ? Cooldown::fused : Cooldown::classic));
            CHECK(make_plan(request).cooldown_was_auto);
            request.cooldown = fused ? Cooldown::classic : Cooldown::fused;
            CHECK(make_plan(request).cooldown == request.cooldown);
        }
}

TEST_CASE("a plan says where a law has nothing to say", "[scaling_law]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    ScalingLaw law = random_law(random);
    law.fraction_by_loss = false;
    PlanRequest request = request_with(law);
    CHECK(make_plan(request).qat_fraction == Approx(std::exp(-law.fraction_constant / std::log(80.0))));
    request.qat_fraction = 1;
    CHECK(plan_text(request).find("none at the fraction 1.0000") != std::string::npos);
    request.bits = 16;
    request.qat_fraction.reset();
    std::string text = plan_text(request);
    CHECK(text.find("none (16 bits: no QAT)") != std::string::npos);
    CHECK(text.find("at 10%") == std::string::npos);
    CHECK(line_of(text, "predicted loss").find("in full precision") != std::string::npos);
    // S <= 1
    request.bits = 8;
    request.steps = 100;
    CHECK_THROWS_WITH(make_plan(request), contains_text("-qat_frac"));
    request.qat_fraction = 0.2;
    text = plan_text(request);
    CHECK(text.find("needs S > 1") != std::string::npos);
    CHECK(text.find("at the optimal") == std::string::npos);
    // The loss law goes on there.
    law.fraction_by_loss = true;
    request.law = std::make_shared<const ScalingLaw>(law);
    request.qat_fraction.reset();
    CHECK(make_plan(request).qat_fraction == optimal_fraction(law.coefficients, 5e5, 1e5, 8));
}
