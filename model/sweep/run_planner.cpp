#include "model/sweep/run_planner.h"

#include <stdexcept>

#include "data/loader.h"
#include "model/run/data_set.h"
#include "model/run/run_plan.h"
#include "model/run/settings.h"
#include "model/sweep/grid.h"

namespace train_qat {

SweepRunPlan RunPlanner::plan(const Options& options) {
    const RunPlan run = plan_run(options, options.sweep_ranks);
    const RunSettings settings = run_settings(options, run, backend_, compute_type_);
    SweepRunPlan planned;
    planned.plan = run.plan;
    planned.flops_per_token = training_flops_per_token(run.config);
    planned.trunk_key = with_roles(settings, job_roles).dump() + "\n" + data_of(options, run.config);
    return planned;
}

const std::string& RunPlanner::data_of(const Options& options, const ModelConfig& config) {
    std::string& known = known_data_[{config.vocabulary, options.seed}];
    if (!known.empty()) return known;
    const DataLoader training(options.data.training, training_loader(options, config, 0, 1));
    known = "training data " + std::to_string(training.fingerprint());
    if (options.data.validation.empty()) return known;
    const DataLoader validation(options.data.validation, validation_loader(options, config));
    return known += ", validation data " + std::to_string(validation.fingerprint());
}

Sweep plan_runs(const std::vector<std::string>& arguments, const Options& options, const Backend& backend,
                std::ostream& log) {
    std::vector<Options> runs;
    std::vector<SweepRunPlan> plans;
    const SweepGrid grid = read_sweep_grid(options.sweep);
    RunPlanner planner(backend, compute_type(options, backend, log));
    for (const SweepRun& run : sweep_runs(grid)) {
        try {
            Options own = *parse_command_line(with_flags(arguments, run.flags));
            own.data = options.data;
            own.sweep.clear();
            plans.push_back(planner.plan(own));
            runs.push_back(std::move(own));
        } catch (const std::runtime_error& error) {
            throw std::runtime_error("-sweep " + options.sweep + ": run " + run.name + ": " + error.what());
        }
        plans.back().name = run.name;
    }
    return {options, std::move(runs), plan_sweep(std::move(plans))};
}

}  // namespace train_qat
