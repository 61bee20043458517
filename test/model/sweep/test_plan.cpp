// The jobs of a sweep: every step of every run once, at its own learning rate, and shared where it can be.
#include "model/sweep/plan.h"

#include <algorithm>
#include <random>
#include <set>
#include <stdexcept>

#include "model/plan/schedule.h"
#include "test/support/catch.h"
#include "test/support/files.h"
#include "test/support/sweep_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

int64_t steps_of(const SweepPlan& plan) {
    int64_t steps = 0;
    for (const SweepJob& job : plan.jobs) steps += job.end_step - job.first_step;
    return steps;
}

int trunks_of(const SweepPlan& plan) {
    return static_cast<int>(std::count_if(plan.jobs.begin(), plan.jobs.end(),
                                          [](const SweepJob& job) { return job.run < 0 && job.parent < 0; }));
}

// Every step of the run once, from new weights to its last one, as its own plan has it.
void check_path(const SweepPlan& plan, int run) {
    const Plan& own = plan.runs[run].plan;
    int job = leaf_of(plan, run);
    REQUIRE(job >= 0);
    REQUIRE(plan.jobs[job].end_step == own.total_steps);
    REQUIRE(plan.jobs[job].plan_of == run);
    for (; job >= 0; job = plan.jobs[job].parent) {
        const SweepJob& part = plan.jobs[job];
        const SweepRunPlan& trainer = plan.runs[part.plan_of];
        REQUIRE(part.parent < job);
        REQUIRE(trainer.trunk_key == plan.runs[run].trunk_key);
        REQUIRE(part.first_step == (part.parent < 0 ? 0 : plan.jobs[part.parent].end_step));
        if (part.run < 0) {
            REQUIRE(part.end_step > part.first_step);
            REQUIRE(part.end_step <= std::min(own.fp_steps, trainer.plan.fp_steps));
        }
        for (int64_t step = part.first_step; step < part.end_step; ++step) {
            if (learning_rate(trainer.plan, step) != learning_rate(own, step)) FAIL("step " << step);
        }
    }
}

void check_jobs(const SweepPlan& plan) {
    std::set<std::string> ids;
    double flops = 0, longest = 0;
    for (size_t job = 0; job < plan.jobs.size(); ++job) {
        const SweepJob& checked = plan.jobs[job];
        double below = 0;
        int children = 0;
        for (const SweepJob& child : plan.jobs)
            if (child.parent == static_cast<int>(job)) below = std::max(below, child.path_cost), ++children;
        REQUIRE(checked.path_cost == Approx(checked.cost + below));
        if (checked.run < 0) {
            REQUIRE(children >= 2);
            REQUIRE(runs_below(plan, static_cast<int>(job)).size() >= 2);
        } else {
            REQUIRE(children == 0);
            REQUIRE(runs_below(plan, static_cast<int>(job)) == std::vector<int>{checked.run});
        }
        REQUIRE(checked.id.size() == 16);
        REQUIRE(ids.insert(checked.id).second);
        flops += checked.cost;
        if (checked.parent < 0) longest = std::max(longest, checked.path_cost);
    }
    CHECK(plan.shared.flops == Approx(flops));
    CHECK(plan.critical_path == Approx(longest));
    CHECK(plan.shared.flops <= plan.naive.flops * (1 + 1e-12));
    CHECK(plan.shared.tokens <= plan.naive.tokens);
    for (size_t run = 0; run < plan.runs.size(); ++run) check_path(plan, static_cast<int>(run));
}

}  // namespace

TEST_CASE("budgets, fractions and bits share one trunk under a warmup in steps", "[sweep_plan]") {
    const SweepPlan plan = plan_sweep(one_trunk_runs());
    check_jobs(plan);
    CHECK(trunks_of(plan) == 1);
    // One trunk to the last switch, at 285 of 300 steps; the QAT of all runs: 1.35 * 3 bits * 600 steps.
    CHECK(steps_of(plan) == 285 + 2430);
    CHECK(plan.naive.tokens == 45 * 200 * 1000.0);
    CHECK(plan.shared.tokens == (285 + 2430) * 1000.0);
    CHECK(plan.shared.flops == 2 * plan.shared.tokens);
    CHECK(plan.critical_path == 300 * 2000.0);
    // Switches at 40, 60, 80, 90, 95, 80, 120, 160, ...: each is a branching point once.
    std::set<int64_t> switches, ends;
    for (const SweepRunPlan& run : plan.runs) switches.insert(run.plan.fp_steps);
    for (const SweepJob& job : plan.jobs)
        if (job.run < 0) REQUIRE(ends.insert(job.end_step).second);
    CHECK(ends == switches);
    const std::string text = format_sweep_plan(plan);
    INFO(text);
    for (const char* part : {"45 runs; 1 shared trunk of", "9.0M", "2.7M", "69.8%", "9.1 times"})
        CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("a warmup as a fraction ties a trunk to its budget", "[sweep_plan]") {
    const SweepPlan plan = plan_sweep(one_trunk_runs("seed 1", 0.05));
    check_jobs(plan);
    CHECK(trunks_of(plan) == 3);
}

TEST_CASE("other keys share nothing", "[sweep_plan]") {
    std::vector<SweepRunPlan> runs = one_trunk_runs("seed 1");
    for (SweepRunPlan& run : one_trunk_runs("seed 2")) runs.push_back(std::move(run));
    std::shuffle(runs.begin(), runs.end(), std::mt19937(3));
    const SweepPlan plan = plan_sweep(runs);
    check_jobs(plan);
    CHECK(trunks_of(plan) == 2);
    CHECK(steps_of(plan) == 2 * steps_of(plan_sweep(one_trunk_runs())));
}

TEST_CASE("runs that share nothing are jobs of their own", "[sweep_plan]") {
    const SweepPlan pure =
        plan_sweep({sweep_run("a", 50, 2, 1), sweep_run("b", 50, 4, 1), sweep_run("c", 50, 4, 1)});
    check_jobs(pure);
    CHECK(pure.jobs.size() == 3);
    CHECK(steps_of(pure) == 150);
    CHECK(pure.critical_path == 50 * 2000.0);
    const SweepPlan single = plan_sweep({sweep_run("run", 33, 4, 0.3)});
    check_jobs(single);
    REQUIRE(single.jobs.size() == 1);
    CHECK(single.jobs[0].path_cost == 33 * 2000.0);
    CHECK(plan_sweep({}).jobs.empty());
    CHECK(format_sweep_plan(plan_sweep({})).find("0 runs") != std::string::npos);
}

TEST_CASE("runs without QAT share all their steps", "[sweep_plan]") {
    const SweepPlan plan = plan_sweep({sweep_run("b2", 50, 2, 0), sweep_run("b4", 50, 4, 0),
                                       sweep_run("b16", 50, 16, 0), sweep_run("f", 50, 4, 0.4)});
    check_jobs(plan);
    // The decay starts at step 40, in a step at the peak; the run with QAT leaves at 30.
    CHECK(steps_of(plan) == 50 + 20);
    for (int run = 0; run < 3; ++run) CHECK(plan.jobs[leaf_of(plan, run)].cost == 0);
}

TEST_CASE("random sweeps train every step of every run once", "[sweep_plan]") {
    std::mt19937 random(5);
    std::uniform_real_distribution<double> unit(0.0, 1.0);
    double saved = 0;
    for (int trial = 0; trial < 60; ++trial) {
        std::vector<SweepRunPlan> runs;
        const size_t count = 1 + random() % 30;
        for (size_t i = 0; i < count; ++i) {
            PlanRequest request;
            request.parameters = 1000;
            request.tokens_per_step = 1 + trial;
            request.steps = 1 + static_cast<int64_t>(random() % 4) * 41;
            request.bits = random() % 2 ? 2 : 4;
            request.qat_fraction = random() % 4 ? static_cast<double>(random() % 6) / 5 : unit(random);
            request.cooldown = random() % 2 ? Cooldown::classic : Cooldown::fused;
            request.schedule = trial % 4 ? Schedule::wsd : Schedule::cosine;
            request.learning_rate = random() % 3 ? 1e-3 : 2e-3;
            request.final_learning_rate_fraction = trial % 3 ? 0 : 1;
            request.warmup = random() % 4 ? StepsOrFraction(int64_t{7}) : StepsOrFraction(0.1);
            runs.push_back(
                {"r" + std::to_string(i), "k" + std::to_string(random() % 2), make_plan(request), 3});
        }
        const SweepPlan plan = plan_sweep(runs);
        check_jobs(plan);
        saved += 1 - plan.shared.tokens / plan.naive.tokens;
    }
    CHECK(saved > 6);  // a tenth on average
}

TEST_CASE("a job keeps its identity in a larger grid", "[sweep_plan]") {
    const std::vector<SweepRunPlan> runs = one_trunk_runs();
    const SweepPlan before = plan_sweep({runs.begin(), runs.begin() + 20});
    std::vector<SweepRunPlan> more = runs;
    std::reverse(more.begin(), more.end());
    more.push_back(sweep_run("between", 300, 4, 0.55));
    const SweepPlan after = plan_sweep(more);
    for (size_t job = 0; job < before.jobs.size(); ++job) {
        const auto same = std::find_if(after.jobs.begin(), after.jobs.end(), [&](const SweepJob& other) {
            return other.id == before.jobs[job].id;
        });
        REQUIRE(same != after.jobs.end());
        CHECK(same->end_step == before.jobs[job].end_step);
        const int index = static_cast<int>(same - after.jobs.begin());
        CHECK(job_name(after, index) == job_name(before, static_cast<int>(job)));
        const auto directory = same->run < 0 ? trunk_directory : run_directory;
        CHECK(directory("out", after, index) == directory("out", before, static_cast<int>(job)));
    }
    // Another key, other bits and another switch are other jobs.
    std::set<std::string> ids;
    for (const SweepRunPlan& run :
         {sweep_run("a", 50, 4, 0.2), sweep_run("a", 50, 4, 0.2, "seed 2"), sweep_run("a", 50, 8, 0.2),
          sweep_run("a", 50, 4, 0.3), sweep_run("a", 51, 4, 0.2),
          sweep_run("a", 50, 4, 0.2, "seed 1", int64_t{9})})
        ids.insert(plan_sweep({run}).jobs[0].id);
    CHECK(ids.size() == 6);
}

TEST_CASE("names and directories of jobs", "[sweep_plan]") {
    const SweepPlan plan = plan_sweep({sweep_run("b4", 50, 4, 0.2), sweep_run("b8", 50, 8, 0.2)});
    REQUIRE(plan.jobs.size() == 3);
    CHECK(job_name(plan, 0) == "trunk 1.0M to step 40");
    CHECK(job_name(plan, 2) == "b8");
    CHECK(trunk_directory("out/x", plan, 0) == "out/x/trunks/1.0M_to_40_" + plan.jobs[0].id);
    CHECK(run_directory("out/x", plan, 1) == "out/x/runs/b4_" + plan.jobs[1].id);
    CHECK_THROWS_AS(run_directory("out", plan, 0), std::logic_error);
    CHECK_THROWS_AS(trunk_directory("out", plan, 1), std::logic_error);
    CHECK_THROWS_AS(plan_sweep({sweep_run("a", 50, 4, 0.2), sweep_run("a", 50, 8, 0.2)}), std::logic_error);
    CHECK_THROWS_AS(plan_sweep({sweep_run("", 50, 4, 0.2)}), std::logic_error);
}
