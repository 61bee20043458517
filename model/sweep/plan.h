// What a sweep trains: runs whose first steps are the same share them.
//
// The full-precision steps of runs with one trunk key and bit-equal learning rates are one computation. The
// jobs of a sweep are the compressed prefix tree of its runs: a trunk segment for every stretch that at least
// two runs share, saved where they part, and a leaf for what each run trains alone. Under a warmup-stable-
// decay schedule with a warmup in steps, all fractions, bits and budgets of one model and seed lie on one
// trunk. Quantization-aware steps are never shared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/plan/plan.h"

namespace train_qat {

struct SweepRunPlan {
    std::string name;  // unique in the sweep, safe as a name of a directory
    // Every setting outside `plan` that the run's numbers depend on: shape, seed, data, batch, optimizer,
    // quantizer, dtype. Runs share steps only if their keys are equal, and a job of an earlier sweep is taken
    // over only if its key is.
    std::string trunk_key;
    Plan plan;
    double flops_per_token = 0;  // of training
    int64_t vocabulary = 0;
    // 16 hexadecimal digits, of the training and validation shards, their tokenizer and the validation's length: losses
    // of runs with different ones can't be compared.
    std::string data = "";
};

// Trains the steps [first_step, end_step), from the parent's checkpoint or from new weights.
struct SweepJob {
    int parent = -1;  // index of a job, always smaller than this one's; -1: starts from new weights
    int64_t first_step = 0, end_step = 0;
    // A leaf finishes this run: end_step is its total_steps. It may have no steps left: a run without QAT
    // whose steps are all shared is only measured. -1: a trunk segment, saved at end_step.
    int run = -1;
    int plan_of = 0;       // index of the run whose plan trains these steps
    double cost = 0;       // floating-point operations
    double path_cost = 0;  // its own and those of the most expensive path below it: start large ones first
    // 16 hexadecimal digits, of everything that decides the state at end_step: the same job in another grid,
    // however it is cut into segments, has the same.
    std::string id;
};

struct SweepCost {
    double tokens = 0, flops = 0;
};

struct SweepPlan {
    std::vector<SweepRunPlan> runs;
    std::vector<SweepJob> jobs;  // parents first
    SweepCost naive;             // every run alone
    SweepCost shared;            // all jobs
    double critical_path = 0;    // FLOPs of the longest chain of jobs: no number of ranks takes less time
};

// Depends on nothing but its argument. std::logic_error for runs without a name or with equal names.
SweepPlan plan_sweep(std::vector<SweepRunPlan> runs);

// Runs that a job serves: the leaves below it.
std::vector<int> runs_below(const SweepPlan& plan, int job);

// For people: the name of a leaf's run; of a trunk segment "trunk 5.0M to step 700".
std::string job_name(const SweepPlan& plan, int job);

// OUTPUT/trunks/5.0M_to_700_ID and OUTPUT/runs/NAME_ID: what a job writes. Other grids in the same OUTPUT
// find the same jobs there and nothing else: a directory of a run that is there already counts by its ID,
// whatever the name before it. std::logic_error for a job of the other kind.
std::string trunk_directory(const std::string& output_directory, const SweepPlan& plan, int job);
std::string run_directory(const std::string& output_directory, const SweepPlan& plan, int job);

// A table with a line for each model size: runs, trunks, tokens alone and shared, and the saving; then the
// totals in FLOPs, and how many ranks can help.
std::string format_sweep_plan(const SweepPlan& plan);

}  // namespace train_qat
