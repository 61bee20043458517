// The planner: S, the optimal QAT fraction, whole steps, errors and the text of -plan.
#include "model/plan/plan.h"

#include <cmath>
#include <random>
#include <stdexcept>
#include <string>

#include "test/support/catch.h"

using namespace train_qat;

namespace {

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

PlanRequest request_of(int64_t parameters, double bits, int64_t steps, int64_t tokens_per_step) {
    PlanRequest request;
    request.parameters = parameters;
    request.bits = bits;
    request.steps = steps;
    request.tokens_per_step = tokens_per_step;
    return request;
}

std::string error_of(const PlanRequest& request) {
    try {
        make_plan(request);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "no error";
}

double fraction(double parameters, double tokens, double bits) {
    return optimal_qat_fraction(tokens_per_parameter_byte(tokens, parameters, bits));
}

}  // namespace

TEST_CASE("S and the optimal fraction match numbers computed by hand", "[plan]") {
    CHECK(tokens_per_parameter_byte(8e9, 396e6, 4) == Approx(40.4040404040404));
    CHECK(optimal_qat_fraction(40.4040404040404) == Approx(0.16212881886804403).epsilon(1e-12));
    CHECK(tokens_per_parameter_byte(8e9, 396e6, 1.58) == Approx(8e9 / (396e6 * 1.58 / 8)));
    CHECK(tokens_per_parameter_byte(100, 100, 8) == 1.0);
    // ln S = a gives f = 1/e, ln S = 2a gives f = exp(-1/2).
    CHECK(optimal_qat_fraction(std::exp(6.7297)) == Approx(std::exp(-1.0)));
    CHECK(optimal_qat_fraction(std::exp(2 * 6.7297)) == Approx(std::exp(-0.5)));
    // The form in which the law is stated.
    for (const double S : {1.5, 3.0, 40.0, 1e3, 1e6}) {
        CHECK(optimal_qat_fraction(S) == Approx(std::exp(std::log(S) - 6.7297 / std::log(S)) / S));
    }
}

TEST_CASE("the fraction follows the reported orders of magnitude", "[plan]") {
    // Reported optima for 2/4/6 bits: a short budget of 86M about 10/8/5%, a long one about 40/25/15%.
    CHECK(fraction(86e6, 2.3e9, 2) == Approx(0.23).margin(0.13));
    CHECK(fraction(86e6, 2.3e9, 4) > fraction(86e6, 2.3e9, 6));
    CHECK(fraction(86e6, 500e9, 2) > 0.4);
    for (const double bits : {1.0, 1.58, 2.0, 3.0, 4.0, 6.0, 8.0}) {
        CHECK(fraction(86e6, 100e9, bits) > fraction(86e6, 10e9, bits));     // longer: larger
        CHECK(fraction(759e6, 100e9, bits) < fraction(396e6, 100e9, bits));  // larger model: smaller
        CHECK(fraction(396e6, 100e9, bits) < fraction(86e6, 100e9, bits));
    }
    double previous = 0.0;
    for (double S = 1.3; S < 1e9; S *= 1.7) {
        const double value = optimal_qat_fraction(S);
        REQUIRE(value > previous);
        REQUIRE(value < 1.0);
        previous = value;
    }
}

TEST_CASE("the law makes no prediction for S up to 1", "[plan]") {
    for (const double S : {1.0, 0.3, 0.0, -1.0, std::nan("")}) {
        CHECK_THROWS_WITH(optimal_qat_fraction(S), Catch::Matchers::Contains("-qat_frac"));
    }
    PlanRequest request = request_of(1'000'000, 8, 100, 1000);
    const std::string error = error_of(request);
    CHECK(contains(error, "-qat_frac"));
    CHECK(contains(error, "0.1 tokens per parameter byte"));
    CHECK(contains(error, "1.0M tokens"));
    CHECK(error.find('\n') == std::string::npos);
    request.qat_fraction = 0.25;
    const Plan plan = make_plan(request);
    CHECK_FALSE(plan.predicted_fraction);
    CHECK(plan.qat_steps == 25);
}

TEST_CASE("a plan splits its tokens into whole steps", "[plan]") {
    PlanRequest request;
    request.parameters = 396'000'000;
    request.bits = 4;
    request.tokens = 8'000'000'000;
    request.tokens_per_step = 500'000;
    const Plan plan = make_plan(request);
    CHECK(plan.total_steps == 16000);
    CHECK(plan.tokens_per_parameter_byte == Approx(40.4040404));
    CHECK(plan.qat_fraction == Approx(0.162128819));
    CHECK(plan.qat_steps == 2594);  // 16000 * 0.162128819 = 2594.06
    CHECK(plan.fp_steps == 13406);
    CHECK(plan.qat_tokens() == 1'297'000'000);
    CHECK(plan.fp_tokens() + plan.qat_tokens() == 8'000'000'000);
    CHECK(plan.fraction_was_auto);

    request.qat_fraction = 0.25;
    const Plan fixed = make_plan(request);
    CHECK_FALSE(fixed.fraction_was_auto);
    CHECK(fixed.qat_steps == 4000);
    CHECK(*fixed.predicted_fraction == Approx(0.162128819));
}

TEST_CASE("tokens round to the nearest number of steps", "[plan]") {
    PlanRequest request = request_of(10, 4, 1, 1000);
    request.steps.reset();
    for (const auto& [tokens, steps] : {std::pair{1000, 1}, {1499, 1}, {1500, 2}, {2499, 2}, {99999, 100}}) {
        request.tokens = tokens;
        CHECK(make_plan(request).total_steps == steps);
    }
    request.tokens = 999;
    CHECK(contains(error_of(request), "-tokens 999: less than one step of 1000"));
}

TEST_CASE("fractions at the edges", "[plan]") {
    PlanRequest request = request_of(1000, 4, 10, 1000);
    const auto qat_steps = [&](int64_t steps, double value) {
        request.steps = steps;
        request.qat_fraction = value;
        return make_plan(request).qat_steps;
    };
    CHECK(qat_steps(10, 0.0) == 0);
    CHECK(qat_steps(10, 1.0) == 10);
    CHECK(qat_steps(10, 1e-9) == 1);
    CHECK(qat_steps(10, 1.0 - 1e-9) == 9);
    CHECK(qat_steps(2, 0.01) == 1);
    CHECK(qat_steps(2, 0.99) == 1);
    CHECK(qat_steps(1, 0.49) == 0);
    CHECK(qat_steps(1, 0.51) == 1);
    CHECK(qat_steps(3, 0.5) == 2);
    // Just above S = 1 the law underflows to zero, and still 4 bits were asked for.
    const Plan plan = make_plan(request_of(1000, 8, 1001, 1));
    CHECK(plan.qat_fraction == 0.0);
    CHECK(plan.qat_steps == 1);
    REQUIRE(plan.notes.size() == 2);  // and the cooldown was shortened
    CHECK(contains(plan.notes[0], "consider -qat_frac"));
}

TEST_CASE("16 bits trains without QAT", "[plan]") {
    PlanRequest request = request_of(1000, 16, 100, 1000);
    CHECK(make_plan(request).qat_steps == 0);
    CHECK_FALSE(make_plan(request).predicted_fraction);
    CHECK_FALSE(make_plan(request).fraction_was_auto);
    request.qat_fraction = 0.0;
    CHECK(make_plan(request).fp_steps == 100);
    request.qat_fraction = 0.25;
    CHECK(contains(error_of(request), "-qat_frac 0.25: -b 16"));
}

TEST_CASE("automatic cooldown fuses from 3 bits on", "[plan]") {
    for (const double bits : {1.0, 1.58, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0}) {
        PlanRequest request = request_of(1000, bits, 100, 1000);
        const Plan plan = make_plan(request);
        CHECK(plan.cooldown_was_auto);
        CHECK(plan.cooldown == (bits < 3 ? Cooldown::classic : Cooldown::fused));
        request.cooldown = Cooldown::classic;
        CHECK(make_plan(request).cooldown == Cooldown::classic);
        CHECK_FALSE(make_plan(request).cooldown_was_auto);
    }
}

TEST_CASE("errors of a request name the flag", "[plan]") {
    const PlanRequest good = request_of(1000, 4, 100, 1000);
    REQUIRE(error_of(good) == "no error");
    const auto with = [&](auto change) {
        PlanRequest request = good;
        change(request);
        const std::string error = error_of(request);
        CHECK(error.find('\n') == std::string::npos);
        return error;
    };
    for (const double bits : {0.0, 7.0, 1.5, 9.0, -4.0, 32.0}) {
        CHECK(contains(with([&](PlanRequest& r) { r.bits = bits; }), "-b "));
    }
    for (const double value : {1.5, -0.1, std::nan("")}) {
        const std::string error = with([&](PlanRequest& r) { r.qat_fraction = value; });
        CHECK(contains(error, "-qat_frac "));
        CHECK(contains(error, "from 0 to 1"));
        CHECK(contains(with([&](PlanRequest& r) { r.cooldown_fraction = value; }), "-cooldown_frac "));
        CHECK(contains(with([&](PlanRequest& r) { r.final_learning_rate_fraction = value; }),
                       "-final_lr_frac "));
        CHECK(contains(with([&](PlanRequest& r) { r.warmup = value; }), "-warmup "));
    }
    CHECK(contains(with([](PlanRequest& r) { r.tokens = 5000; }), "-tokens and -steps"));
    CHECK(contains(with([](PlanRequest& r) { r.steps = 0; }), "-steps 0"));
    CHECK(contains(with([](PlanRequest& r) { r.steps = INT64_MAX / 1000; }), "-steps"));
    CHECK(contains(with([](PlanRequest& r) { r.learning_rate = 0; }), "-lr 0"));
    CHECK(contains(with([](PlanRequest& r) { r.learning_rate = HUGE_VAL; }), "-lr inf"));
    CHECK(contains(with([](PlanRequest& r) { r.qat_learning_rate = -1; }), "-qat_lr -1"));
    CHECK(contains(with([](PlanRequest& r) { r.warmup = int64_t{-1}; }), "-warmup -1"));
    CHECK(contains(with([](PlanRequest& r) { r.qat_warmup = int64_t{-1}; }), "-qat_warmup -1"));
    CHECK(contains(with([](PlanRequest& r) { r.qat_learning_rate = 1e-4; }), "-qat_lr: a fused cooldown"));
    CHECK(contains(with([](PlanRequest& r) { r.qat_warmup = 0.1; }), "-cooldown auto"));
    const auto cosine_with_cooldown = [](PlanRequest& r) {
        r.schedule = Schedule::cosine;
        r.cooldown_fraction = 0.3;
    };
    CHECK(contains(with(cosine_with_cooldown), "-cooldown_frac: the cosine"));
    PlanRequest broken = good;
    broken.parameters = 0;
    CHECK_THROWS_AS(make_plan(broken), std::logic_error);
    broken = good;
    broken.tokens_per_step = 0;
    CHECK_THROWS_AS(make_plan(broken), std::logic_error);
}

TEST_CASE("QAT settings without QAT steps are noted", "[plan]") {
    PlanRequest request = request_of(1000, 4, 100, 1000);
    request.qat_fraction = 0.0;
    CHECK(make_plan(request).notes.empty());
    request.qat_learning_rate = 1e-4;
    REQUIRE(make_plan(request).notes.size() == 1);
    CHECK(contains(make_plan(request).notes[0], "-qat_lr"));
}

TEST_CASE("random plans keep their promises", "[plan]") {
    std::mt19937 random(7);
    const double all_bits[] = {1, 1.58, 2, 3, 4, 5, 6, 8};
    std::uniform_real_distribution<double> unit(0.0, 1.0);
    for (int trial = 0; trial < 2000; ++trial) {
        const int64_t parameters = 1 + random() % 1000;
        const double bits = all_bits[random() % 8];
        PlanRequest request = request_of(parameters, bits, 1 + random() % 300, 2000);
        if (random() % 2) request.qat_fraction = unit(random);
        if (random() % 2) request.warmup = static_cast<int64_t>(random() % 400);
        if (random() % 2) request.cooldown = Cooldown::classic;
        if (random() % 3 == 0) {
            request.schedule = Schedule::cosine;
        } else if (random() % 2) {
            request.cooldown_fraction = unit(random);
        }
        const Plan plan = make_plan(request);
        REQUIRE(plan.fp_steps + plan.qat_steps == *request.steps);
        REQUIRE(plan.fp_steps >= 0);
        REQUIRE(plan.qat_steps >= 0);
        REQUIRE(plan.fp_tokens() + plan.qat_tokens() == plan.tokens());
        REQUIRE(std::abs(static_cast<double>(plan.qat_steps) - plan.qat_fraction * plan.total_steps) <= 1.0);
        if (!request.qat_fraction) REQUIRE(plan.qat_fraction == *plan.predicted_fraction);
        if (plan.total_steps > 1) REQUIRE(plan.qat_steps > 0);
        REQUIRE(plan.warmup_steps <= (plan.fp_steps ? plan.fp_steps : plan.qat_steps));
        if (plan.has_two_decays()) {
            REQUIRE(plan.warmup_steps + plan.cooldown_steps <= plan.fp_steps);
            REQUIRE(plan.qat_warmup_steps + plan.qat_cooldown_steps == plan.qat_steps);
        } else {
            REQUIRE(plan.warmup_steps + plan.cooldown_steps <= plan.total_steps);
            REQUIRE(plan.qat_warmup_steps + plan.qat_cooldown_steps == 0);
        }
    }
}

TEST_CASE("names are parsed and printed", "[plan]") {
    CHECK(parse_schedule("wsd") == Schedule::wsd);
    CHECK(parse_schedule(to_string(Schedule::cosine)) == Schedule::cosine);
    for (const Cooldown cooldown : {Cooldown::fused, Cooldown::classic, Cooldown::automatic}) {
        CHECK(parse_cooldown(to_string(cooldown)) == cooldown);
    }
    CHECK_THROWS_WITH(parse_schedule("linear"), Catch::Matchers::Contains("-schedule linear"));
    CHECK_THROWS_WITH(parse_cooldown("none"), Catch::Matchers::Contains("-cooldown none"));
    CHECK(to_string(Phase::full_precision) == "FP");
    CHECK(to_string(Phase::quantization_aware) == "QAT");
    CHECK(format_bits(1.58) == "1.58");
    CHECK(format_bits(4) == "4");
    CHECK(std::get<int64_t>(parse_steps_or_fraction("200", "-warmup")) == 200);
    CHECK(std::get<int64_t>(parse_steps_or_fraction("0", "-warmup")) == 0);
    CHECK(std::get<double>(parse_steps_or_fraction("0.02", "-warmup")) == 0.02);
    CHECK(std::get<double>(parse_steps_or_fraction("1.0", "-warmup")) == 1.0);
    for (const char* text : {"", "x", "-1", "2.5", "10s", "0.1x", "1e3", "inf", "99999999999999999999"}) {
        INFO(text);
        CHECK_THROWS_WITH(parse_steps_or_fraction(text, "-warmup"),
                          Catch::Matchers::Contains("-warmup: cannot read"));
    }
}

TEST_CASE("without tokens and steps a plan trains 20 tokens per parameter", "[plan]") {
    PlanRequest request;
    request.parameters = 1'000'000;
    request.bits = 4;
    request.qat_fraction = 0.25;
    request.tokens_per_step = 1000;
    const Plan plan = make_plan(request);
    CHECK(plan.total_steps == 20'000);
    CHECK(plan.tokens_were_auto);
    request.tokens = 20'000'000;
    CHECK(make_plan(request).total_steps == 20'000);
    CHECK_FALSE(make_plan(request).tokens_were_auto);
    request.tokens.reset();
    request.tokens_per_step = 30'000'000;  // at least one step
    CHECK(make_plan(request).total_steps == 1);
    request.steps = 3;
    CHECK_FALSE(make_plan(request).tokens_were_auto);
    const ModelConfig config = resolve_config("1M", 4096, 128, {});
    CHECK(format_plan(plan, config).find("20.0 per parameter; -tokens sets them)") != std::string::npos);
    CHECK(format_plan(make_plan(request), config).find("-tokens") == std::string::npos);
}

TEST_CASE("the text of a plan states its inputs, fractions, phases and operations", "[plan]") {
    const ModelConfig config = resolve_config("", 8192, 512, {6, 384, 6, {}, 1024});
    PlanRequest request = request_of(parameter_count(config), 4, 1000, 100'000);
    std::string text = format_plan(make_plan(request), config);
    INFO(text);
    for (const char* part :
         {"13,767,552", "100,000,000", "14.53", "0.0809", "used", "[0, 919)", "[919, 1000)", "fused (auto",
          "8.965e+15", "note: cooldown shortened from 200 to 81", "last step"}) {
        INFO(part);
        CHECK(contains(text, part));
    }
    request.qat_fraction = 1.0;
    text = format_plan(make_plan(request), config);
    CHECK(contains(text, "overridden"));
    CHECK(contains(text, "all steps are QAT"));
    request.bits = 16;
    request.qat_fraction.reset();
    CHECK(contains(format_plan(make_plan(request), config), "no QAT"));
    request.bits = 1;
    request.steps = 1;
    request.qat_fraction = 0.3;
    CHECK(contains(format_plan(make_plan(request), config), "needs S > 1"));
}
