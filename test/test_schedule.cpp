// The learning rate of every step: closed forms, continuity, bounds, edges and milestones.
#include "model/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/catch.h"

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
