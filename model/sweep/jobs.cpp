#include "model/sweep/jobs.h"

#include <stdexcept>

#include "model/storage/checkpoint_directory.h"

namespace train_qat {

Options options_of_job(const Sweep& sweep, int job) {
    const SweepJob& planned = sweep.plan.jobs[job];
    Options own = sweep.runs[planned.plan_of];
    own.output_directory = directory_of_job(sweep, job);
    own.resume = true;  // what an interrupted sweep has left of it
    if (planned.run < 0) {
        own.trunk = true;
        own.until = planned.end_step;
    }
    if (planned.parent >= 0) own.from = end_of_trunk(sweep, planned.parent);
    return own;
}

std::string directory_of_job(const Sweep& sweep, int job) {
    const auto directory = sweep.plan.jobs[job].run < 0 ? trunk_directory : run_directory;
    return directory(sweep.options.output_directory, sweep.plan, job);
}

std::string end_of_trunk(const Sweep& sweep, int trunk) {
    return directory_of_job(sweep, trunk) + "/" + checkpoint_name(sweep.plan.jobs[trunk].end_step);
}

std::string results_path(const Sweep& sweep) {
    return sweep.options.output_directory + "/results.jsonl";
}

SweepOutcome outcome_of(const Sweep& sweep, int leaf) {
    const SweepJob& job = sweep.plan.jobs[leaf];
    const Options& own = sweep.runs[job.run];
    SweepOutcome outcome;
    outcome.run = sweep.plan.runs[job.run].name;
    outcome.job = job.id;
    outcome.asked_fraction = own.plan.qat_fraction;
    outcome.asked_cooldown = own.plan.cooldown;
    outcome.seed = own.seed;
    outcome.plan = sweep.plan.runs[job.run].plan;
    outcome.trained_steps = job.end_step - job.first_step;
    outcome.shared_steps = job.first_step;
    outcome.directory = directory_of_job(sweep, leaf);
    outcome.vocabulary = sweep.plan.runs[job.run].vocabulary;
    outcome.data = sweep.plan.runs[job.run].data;
    return outcome;
}

nlohmann::ordered_json failure_record(const Sweep& sweep, int leaf, const std::string& reason) {
    SweepOutcome outcome = outcome_of(sweep, leaf);
    outcome.failure = reason;
    return result_record(outcome);
}

int leaf_of(const Sweep& sweep, int run) {
    for (size_t job = 0; job < sweep.plan.jobs.size(); ++job)
        if (sweep.plan.jobs[job].run == run) return static_cast<int>(job);
    throw std::logic_error("leaf_of: a run without a job");
}

}  // namespace train_qat
