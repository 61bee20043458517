#include "model/sweep/run_planner.h"

#include <stdexcept>

#include "data/loader.h"
#include "model/job/choices.h"
#include "model/job/data_set.h"
#include "model/job/run_plan.h"
#include "model/job/settings.h"
#include "model/storage/checksum.h"
#include "model/sweep/grid.h"

namespace train_qat {

SweepRunPlan RunPlanner::plan(const Options& options) {
    const RunPlan run = plan_run(options, options.sweep_ranks);
    const RunSettings settings = run_settings(options, run, backend_, compute_type_);
    SweepRunPlan planned;
    planned.plan = run.plan;
    planned.flops_per_token = training_flops_per_token(run.config);
    planned.vocabulary = run.config.vocabulary;
    const Data& data = data_of(options, run.config);
    planned.trunk_key = with_roles(settings, job_roles).dump() + "\n" + data.in_order;
    planned.data = data.contents;
    return planned;
}

const RunPlanner::Data& RunPlanner::data_of(const Options& options, const ModelConfig& config) {
    Data& known = known_data_[{config.vocabulary, options.seed}];
    if (!known.in_order.empty()) return known;
    const auto fingerprint = [](const std::string& files, const LoaderOptions& loader) {
        return std::to_string(DataLoader(files, loader).fingerprint());
    };
    LoaderOptions training = training_loader(options, config, 0, 1);
    known.in_order = "training data " + fingerprint(options.data.training, training);
    training.shuffle = false;
    std::string contents = fingerprint(options.data.training, training);
    if (!options.data.validation.empty()) {
        const std::string validation =
            fingerprint(options.data.validation, validation_loader(options, config));
        known.in_order += ", validation data " + validation;
        contents += " " + validation + " " + std::to_string(options.validation_sequences);
    }
    known.contents = checksum_text(checksum_of(contents));
    return known;
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
            own.plan.law = options.plan.law;
            own = resolve_choices(own, own.sweep_ranks).options;
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
