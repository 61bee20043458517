// Runs of sweeps for tests: plans without a model.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "model/sweep/plan.h"

namespace train_qat::test {

// 1000 tokens a step, a warmup of 10 steps, 2 FLOPs a token.
inline SweepRunPlan sweep_run(const std::string& name, int64_t steps, double bits, double fraction,
                              const std::string& key = "seed 1", StepsOrFraction warmup = int64_t{10}) {
    PlanRequest request;
    request.parameters = 1'000'000;
    request.tokens_per_step = 1000;
    request.steps = steps;
    request.bits = bits;
    request.qat_fraction = fraction;
    request.warmup = warmup;
    return {name, key, make_plan(request), 2.0};
}

// Budgets of 100, 200 and 300 steps, 5 fractions and 3 bits on one trunk.
inline std::vector<SweepRunPlan> one_trunk_runs(const std::string& key = "seed 1",
                                                StepsOrFraction warmup = int64_t{10}) {
    std::vector<SweepRunPlan> runs;
    for (const int64_t steps : {100, 200, 300})
        for (const double fraction : {0.05, 0.1, 0.2, 0.4, 0.6})
            for (const double bits : {3.0, 4.0, 8.0})
                runs.push_back(sweep_run(key + "_t" + std::to_string(steps) + "_f" +
                                             std::to_string(fraction) + "_b" + format_bits(bits),
                                         steps, bits, fraction, key, warmup));
    return runs;
}

// A child process that repeats none of what the test program has printed so far.
inline pid_t fork_quietly() {
    std::cout.flush();
    std::fflush(nullptr);
    return ::fork();
}

// The job that finishes a run; -1: none.
inline int leaf_of(const SweepPlan& plan, int run) {
    for (size_t job = 0; job < plan.jobs.size(); ++job)
        if (plan.jobs[job].run == run) return static_cast<int>(job);
    return -1;
}

}  // namespace train_qat::test
