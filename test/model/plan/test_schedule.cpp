// The learning rate of every step: closed forms, continuity, bounds, edges and milestones.
#include "model/plan/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/support/catch.h"

using namespace train_qat;

namespace {

// 100 steps of 1000 tokens, 4 bits, peak 1.
PlanRequest hundred_steps(double fraction) {
    PlanRequest request;
    request.parameters = 1000;
    request.bits = 4;
    request.qat_fraction = fraction;
    request.steps = 100;
    request.tokens_per_step = 1000;
    request.learning_rate = 1.0;
    request.warmup = int64_t{10};
    return request;
}

std::vector<double> curve(const Plan& plan) {
    std::vector<double> values;
    for (int64_t step = 0; step < plan.total_steps; ++step) values.push_back(learning_rate(plan, step));
    return values;
}

double cosine(double progress) {
    return 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

PlanRequest random_request(std::mt19937& random) {
    std::uniform_real_distribution<double> unit(0.0, 1.0);
    const double all_bits[] = {1, 1.58, 2, 3, 4, 8};
    PlanRequest request = hundred_steps(0.5);
    request.bits = all_bits[random() % 6];
    const int64_t longest = random() % 3 ? 400 : 4;
    request.steps = 1 + static_cast<int64_t>(random()) % longest;
    request.tokens_per_step = 5000;
    const auto kind = random() % 6;
    if (kind == 0) request.qat_fraction = 0.0;
    if (kind == 1) request.qat_fraction = 1.0;
    if (kind == 2) request.qat_fraction.reset();
    if (kind > 2) request.qat_fraction = unit(random);
    request.schedule = random() % 2 ? Schedule::wsd : Schedule::cosine;
    request.cooldown = random() % 2 ? Cooldown::classic : Cooldown::fused;
    if (random() % 2) request.warmup = unit(random);
    if (random() % 4 == 0) request.warmup = int64_t{0};
    if (request.schedule == Schedule::wsd && random() % 2) request.cooldown_fraction = unit(random);
    if (request.cooldown == Cooldown::classic && random() % 2) request.qat_learning_rate = 0.1 + unit(random);
    if (request.cooldown == Cooldown::classic && random() % 2) request.qat_warmup = unit(random);
    if (random() % 2) request.final_learning_rate_fraction = unit(random);
    return request;
}

}  // namespace

TEST_CASE("fused WSD: warmup, stable through the switch, cooldown inside QAT", "[schedule]") {
    const Plan plan = make_plan(hundred_steps(0.4));
    REQUIRE(plan.fp_steps == 60);
    const std::vector<double> rates = curve(plan);
    for (int64_t step = 0; step < 100; ++step) {
        const double expected = step < 10 ? (step + 1) / 10.0 : step < 80 ? 1.0 : 1.0 - (step - 80) / 20.0;
        REQUIRE(rates[step] == Approx(expected));
    }
    CHECK(phase_at(plan, 59) == Phase::full_precision);
    CHECK(phase_at(plan, 60) == Phase::quantization_aware);
}

TEST_CASE("fused WSD: a QAT range shorter than the cooldown decays as a whole", "[schedule]") {
    const Plan plan = make_plan(hundred_steps(0.1));
    CHECK(plan.cooldown_steps == 10);
    REQUIRE(plan.notes.size() == 1);
    CHECK(plan.notes[0].find("cooldown shortened from 20 to 10") != std::string::npos);
    CHECK(learning_rate(plan, 89) == 1.0);
    CHECK(learning_rate(plan, 90) == 1.0);
    CHECK(learning_rate(plan, 91) == Approx(0.9));
    CHECK(learning_rate(plan, 99) == Approx(0.1));
}

TEST_CASE("classic WSD: two ranges, each ending in a decay", "[schedule]") {
    PlanRequest request = hundred_steps(0.4);
    request.cooldown = Cooldown::classic;
    request.qat_warmup = int64_t{5};
    request.qat_learning_rate = 0.5;
    request.final_learning_rate_fraction = 0.1;
    const Plan plan = make_plan(request);
    REQUIRE(plan.cooldown_steps == 12);  // 20% of the 60 FP steps
    for (int64_t step = 0; step < 100; ++step) {
        double expected = 1.0;
        if (step < 10) expected = (step + 1) / 10.0;
        if (step >= 48) expected = 1.0 - 0.9 * (step - 48) / 12.0;
        if (step >= 60) expected = 0.5 * (step - 59) / 5.0;
        if (step >= 65) expected = 0.5 - 0.45 * (step - 65) / 35.0;
        INFO(step);
        REQUIRE(learning_rate(plan, step) == Approx(expected));
    }
}

TEST_CASE("cosine: fused is one curve, classic is two", "[schedule]") {
    PlanRequest request = hundred_steps(0.4);
    request.schedule = Schedule::cosine;
    const Plan fused = make_plan(request);
    request.cooldown = Cooldown::classic;
    request.qat_warmup = int64_t{4};
    const Plan classic = make_plan(request);
    for (int64_t step = 0; step < 100; ++step) {
        INFO(step);
        const double warmup = (step + 1) / 10.0;
        REQUIRE(learning_rate(fused, step) == Approx(step < 10 ? warmup : cosine((step - 10) / 90.0)));
        double expected = step < 10 ? warmup : cosine((step - 10) / 50.0);
        if (step >= 60) expected = (step - 59) / 4.0;
        if (step >= 64) expected = cosine((step - 64) / 36.0);
        REQUIRE(learning_rate(classic, step) == Approx(expected));
    }
}

TEST_CASE("pure FP and pure QAT have the same curve", "[schedule]") {
    for (const Cooldown cooldown : {Cooldown::fused, Cooldown::classic}) {
        PlanRequest request = hundred_steps(0.0);
        request.cooldown = cooldown;
        const std::vector<double> fp = curve(make_plan(request));
        request.qat_fraction = 1.0;
        CHECK(curve(make_plan(request)) == fp);
        CHECK(fp[0] == Approx(0.1));
        CHECK(fp[9] == 1.0);
        CHECK(fp[80] == 1.0);
        CHECK(fp[99] == Approx(0.05));
        request.qat_learning_rate = 0.25;  // pure QAT obeys its own peak and warmup
        request.qat_warmup = int64_t{20};
        CHECK(learning_rate(make_plan(request), 50) == 0.25);
        CHECK(learning_rate(make_plan(request), 0) == Approx(0.25 / 20));
    }
}

TEST_CASE("all fused WSD branches share one FP trunk", "[schedule]") {
    const Plan reference = make_plan(hundred_steps(0.3));
    for (const double bits : {3.0, 4.0, 8.0}) {
        for (const double fraction : {0.05, 0.1, 0.5, 0.85}) {
            PlanRequest request = hundred_steps(fraction);
            request.bits = bits;
            const Plan plan = make_plan(request);
            for (int64_t step = 0; step < std::min(plan.fp_steps, reference.fp_steps); ++step) {
                REQUIRE(learning_rate(plan, step) == learning_rate(reference, step));
            }
        }
    }
}

TEST_CASE("tiny ranges and long warmups are well-defined", "[schedule]") {
    PlanRequest request = hundred_steps(0.5);
    request.steps = 1;
    request.qat_fraction = 1.0;
    CHECK(learning_rate(make_plan(request), 0) == 1.0);  // warmup of 10 cut to the one step: at its peak
    request.warmup = int64_t{0};
    CHECK(learning_rate(make_plan(request), 0) == 1.0);
    request.steps = 2;
    request.qat_fraction = 0.5;
    CHECK(curve(make_plan(request)) == std::vector<double>{1.0, 1.0});
    request.cooldown = Cooldown::classic;
    CHECK(curve(make_plan(request)) == std::vector<double>{1.0, 1.0});
    request.steps = 8;
    request.warmup = int64_t{1000};
    request.qat_warmup = int64_t{1000};
    const Plan plan = make_plan(request);
    CHECK(curve(plan) == std::vector<double>{0.25, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75, 1.0});
    REQUIRE(plan.notes.size() == 3);
    CHECK(plan.notes[0].find("warmup shortened from 1000 to 4") != std::string::npos);
}

TEST_CASE("steps outside the plan and inconsistent plans are refused", "[schedule]") {
    Plan plan = make_plan(hundred_steps(0.4));
    CHECK_THROWS_AS(learning_rate(plan, -1), std::logic_error);
    CHECK_THROWS_AS(learning_rate(plan, 100), std::logic_error);
    CHECK_THROWS_AS(phase_at(plan, 100), std::logic_error);
    CHECK_THROWS_AS(phase_at(plan, -1), std::logic_error);
    plan.warmup_steps = 99;
    CHECK_THROWS_AS(learning_rate(plan, 0), std::logic_error);
}

TEST_CASE("random curves are positive, bounded, continuous and described by their milestones", "[schedule]") {
    std::mt19937 random(11);
    for (int trial = 0; trial < 1000; ++trial) {
        const Plan plan = make_plan(random_request(random));
        const std::vector<double> rates = curve(plan);
        const double peak = std::max(plan.learning_rate, plan.qat_learning_rate);
        // The steepest slopes: a warmup climbs peak/n a step, a linear decay as much, a cosine pi/2 of it.
        const auto steepest = [&](int64_t n) { return n > 0 ? peak / static_cast<double>(n) : 0.0; };
        double bound = std::max({steepest(plan.warmup_steps), 1.58 * steepest(plan.cooldown_steps),
                                 steepest(plan.qat_warmup_steps), 1.58 * steepest(plan.qat_cooldown_steps)});
        for (int64_t step = 0; step < plan.total_steps; ++step) {
            REQUIRE(rates[step] > 0.0);
            REQUIRE(rates[step] <= peak);
            const bool classic_switch = plan.has_two_decays() && step == plan.fp_steps;
            if (step > 0 && !classic_switch)
                REQUIRE(std::abs(rates[step] - rates[step - 1]) <= bound * 1.0001);
            REQUIRE((phase_at(plan, step) == Phase::full_precision) == (step < plan.fp_steps));
        }
        const std::vector<Milestone> list = milestones(plan);
        REQUIRE(list.front().step == 0);
        REQUIRE(list.back().step == plan.total_steps - 1);
        bool switch_listed = false;
        for (size_t index = 0; index < list.size(); ++index) {
            if (index > 0) REQUIRE(list[index].step > list[index - 1].step);
            REQUIRE(list[index].learning_rate == rates[list[index].step]);
            const bool names_switch = list[index].label.find("switch to QAT") != std::string::npos;
            if (names_switch) REQUIRE(list[index].step == plan.fp_steps);
            switch_listed |= names_switch;
        }
        REQUIRE(switch_listed == (plan.fp_steps > 0 && plan.qat_steps > 0));
    }
}

namespace {

int64_t shared_steps_one_by_one(const Plan& a, const Plan& b) {
    int64_t step = 0;
    while (step < std::min(a.fp_steps, b.fp_steps) && learning_rate(a, step) == learning_rate(b, step))
        ++step;
    return step;
}

// A request that differs from another one in few of the settings that a sweep varies.
PlanRequest varied(PlanRequest request, std::mt19937& random) {
    const PlanRequest other = random_request(random);
    if (random() % 2) request.qat_fraction = other.qat_fraction;
    if (random() % 2) request.bits = other.bits;
    if (random() % 3 == 0) request.steps = other.steps;
    if (random() % 4 == 0) request.cooldown = Cooldown::classic;
    if (random() % 4 == 0) request.warmup = other.warmup;
    if (random() % 6 == 0) request.final_learning_rate_fraction = other.final_learning_rate_fraction;
    if (random() % 6 == 0) request.learning_rate = 0.5;
    if (request.cooldown != Cooldown::classic) {
        request.qat_learning_rate.reset();
        request.qat_warmup.reset();
    }
    return request;
}

}  // namespace

TEST_CASE("shared steps are those of a comparison one by one", "[schedule]") {
    std::mt19937 random(23);
    int64_t pairs_that_share = 0, pairs_that_part = 0;
    for (int trial = 0; trial < 4000; ++trial) {
        PlanRequest request = random_request(random);
        request.warmup = trial % 2 ? StepsOrFraction(int64_t(random() % 20)) : StepsOrFraction(0.05);
        if (trial % 7 == 0) request.final_learning_rate_fraction = 1.0;
        const Plan a = make_plan(request), b = make_plan(varied(request, random));
        const int64_t expected = shared_steps_one_by_one(a, b);
        REQUIRE(shared_steps(a, b) <= expected);
        REQUIRE(shared_steps(a, b) >= expected - 2);
        REQUIRE(shared_steps(b, a) == shared_steps(a, b));
        REQUIRE(shared_steps(a, a) == a.fp_steps);
        pairs_that_share += expected > 20;
        pairs_that_part += expected < std::min(a.fp_steps, b.fp_steps);
    }
    CHECK(pairs_that_share > 500);
    CHECK(pairs_that_part > 500);
}

TEST_CASE("shared steps of long plans", "[schedule]") {
    PlanRequest request = hundred_steps(0.25);
    request.steps = 1'000'000'000;
    PlanRequest longer = request;
    longer.steps = 3'000'000'000;
    CHECK(shared_steps(make_plan(request), make_plan(longer)) == 750'000'000);
    longer.qat_fraction = 0.9;
    CHECK(shared_steps(make_plan(request), make_plan(longer)) == 300'000'000);
    request.cooldown = longer.cooldown = Cooldown::classic;
    // The classic decay takes the last fifth of the FP steps, and its first step is still at the peak.
    CHECK(shared_steps(make_plan(request), make_plan(longer)) == 240'000'001);
    request.warmup = longer.warmup = 0.02;
    CHECK(shared_steps(make_plan(request), make_plan(longer)) == 0);
}

TEST_CASE("equal texts of curves mean equal learning rates", "[schedule]") {
    std::mt19937 random(29);
    int64_t equal = 0, different = 0;
    for (int trial = 0; trial < 2000; ++trial) {
        const PlanRequest request = random_request(random);
        const Plan a = make_plan(request), b = make_plan(varied(request, random));
        const int64_t shared = shared_steps_one_by_one(a, b);
        // What two plans share has one text, unless they agree in different forms, which is rare.
        equal += curve_text(a, shared) == curve_text(b, shared);
        if (shared == std::min(a.total_steps, b.total_steps)) continue;
        const bool rates_part = learning_rate(a, shared) != learning_rate(b, shared);
        if (rates_part) CHECK(curve_text(a, shared + 1) != curve_text(b, shared + 1));
        different += rates_part;
        CHECK(curve_text(a, shared) != curve_text(a, shared + 1));
    }
    CHECK(equal > 1980);
    CHECK(different > 500);
    const Plan plan = make_plan(hundred_steps(0.4));
    CHECK_THROWS_AS(curve_text(plan, 101), std::logic_error);
    CHECK_THROWS_AS(curve_text(plan, -1), std::logic_error);
    CHECK(curve_text(plan, 0) == "end 0");
}

TEST_CASE("milestones of the two kinds of plan", "[schedule]") {
    const auto labels = [](const Plan& plan) {
        std::string text;
        for (const Milestone& milestone : milestones(plan)) {
            text += std::to_string(milestone.step) + " " + milestone.label + "; ";
        }
        return text;
    };
    PlanRequest request = hundred_steps(0.4);
    CHECK(labels(make_plan(request)) ==
          "0 warmup begins; 10 stable begins; 60 switch to QAT; 80 cooldown begins; 99 last step; ");
    request.cooldown = Cooldown::classic;
    request.qat_warmup = int64_t{5};
    CHECK(labels(make_plan(request)) ==
          "0 warmup begins; 10 stable begins; 48 cooldown begins; 60 switch to QAT, re-warmup begins; "
          "65 QAT decay begins; 99 last step; ");
}
