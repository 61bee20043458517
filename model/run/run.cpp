#include "model/run/run.h"

#include <algorithm>
#include <numeric>

#include "kernels/ranks/agreement.h"
#include "model/units.h"

namespace train_qat {

using Clock = std::chrono::steady_clock;

// ---- begin

Run::Run(Setup& setup) : setup_(setup), options_(setup.options), plan_(setup.run_plan.plan) {
    check_ranks_agree(
        setup.communicator, setup.settings,
        {setup.training_data.fingerprint(), setup.validation ? setup.validation->fingerprint() : 0});
    const RunStart start = setup.checkpoints.start(plan_, setup.console);
    step_ = start.position.step;
    results_ = start.position.results;
    branched_ = start.branched;
    first_metrics_step_ = start.first_metrics_step;
    setup.training_data.seek(start.position.loader_position);
    setup.reports.set_last_checkpoint(start.position.checkpoint);
}

bool Run::is_done_already() const {
    if (step_ <= last_step()) return false;
    setup_.console << "step " << step_ << " is done already, -until " << last_step() << " is before it\n";
    return true;
}

void Run::begin() {
    Backend& backend = setup_.model->backend();
    const DType type = setup_.model->compute_type();
    const std::vector<double> peaks = gather_numbers(setup_.communicator, backend.peak_flops(type));
    const PeakFlops peak{std::accumulate(peaks.begin(), peaks.end(), 0.0), backend.peak_source(type)};
    run_together(setup_.communicator, [&] {
        setup_.log.begin(setup_.console, first_metrics_step_, options_.print_every,
                         training_flops_per_token(setup_.run_plan.config), peak);
        if (options_.tensorboard) setup_.log.open_event_file(first_metrics_step_);
    });
}

// ---- between steps

int64_t Run::last_step() const {
    return std::min(options_.until.value_or(plan_.total_steps), plan_.total_steps);
}

bool Run::part_is_done() const {
    return reached_until() && (options_.trunk || last_step() < plan_.total_steps);
}

bool Run::save_is_due() const {
    return options_.save_every > 0 && step_ % options_.save_every == 0;
}

bool Run::validation_is_due() const {
    return setup_.validation && options_.validate_every > 0 && step_ % options_.validate_every == 0;
}

void Run::validate_if_due(Phase phase) {
    if (validation_is_due()) validate(phase, phase == Phase::full_precision ? "full_precision" : "quantized");
}

void Run::save_if_due() {
    if (save_is_due()) save();
}

// `weights` says how they are now: full_precision, rounded (never trained so) or quantized.
double Run::validate(Phase phase, const char* weights) {
    const Clock::time_point start = Clock::now();
    const double loss = setup_.validation->loss(*setup_.model, setup_.communicator);
    setup_.log.validation(phase, step_, weights, loss, setup_.validation->tokens(), seconds_since(start));
    return loss;
}

std::optional<double> Run::validate_unless_stopped(Phase phase, const char* weights) {
    const Clock::time_point start = Clock::now();
    const auto loss = setup_.validation->loss_unless_stopped(*setup_.model, setup_.communicator);
    if (loss)
        setup_.log.validation(phase, step_, weights, *loss, setup_.validation->tokens(),
                              seconds_since(start));
    return loss;
}

void Run::save() {
    setup_.log.sync();
    const std::string path = setup_.checkpoints.save({step_, setup_.training_data.position(), results_, ""});
    setup_.reports.set_last_checkpoint(path);
    setup_.console << "saved " << path << std::endl;
}

// ---- where ranges begin and end

void Run::validate_where_branched() {
    if (branched_ && step_ > 0 && step_ < plan_.fp_steps) validate_if_due(Phase::full_precision);
}

void Run::switch_to_quantization() {
    if (setup_.model->parameters().quantized()) return;
    // New weights that no step has trained are not worth measuring.
    const bool trained = plan_.fp_steps > 0 || !options_.initial_model.empty();
    const bool compare = setup_.validation && trained;
    if (compare) results_.full_precision = validate(Phase::full_precision, "full_precision");
    results_.fp_traffic = setup_.optimizer.data_parallel().step_traffic();
    setup_.optimizer.begin_quantization();
    if (compare) results_.rounded = validate(Phase::full_precision, "rounded");
    // Here and not after the step before: a checkpoint of the switch holds what was measured at it.
    if (step_ > 0) save_if_due();
}

bool Run::stop() {
    save();
    setup_.console << "stopped after step " << step_ << "; go on with the same command and -resume"
                   << std::endl;
    return reached_until();
}

bool Run::finish() {
    if (setup_.validation && !validate_at_the_end()) {
        stop();
        return false;
    }
    DataParallel::StepTraffic& traffic = plan_.qat_steps > 0 ? results_.qat_traffic : results_.fp_traffic;
    traffic = setup_.optimizer.data_parallel().step_traffic();
    save();
    if (is_first_rank() && setup_.sample && options_.sample_tokens > 0)
        results_.sample = setup_.sample->text(*setup_.model);
    setup_.log.end(results_, setup_.console);
    return true;
}

// A checkpoint of the last step holds what was measured at it: a resume from there does not measure again. False: stopped
// before all was measured.
bool Run::validate_at_the_end() {
    Optimizer& optimizer = setup_.optimizer;
    Parameters& parameters = setup_.model->parameters();
    const auto measure = [&](std::optional<double>& loss, Phase phase, const char* weights) {
        if (!loss) loss = validate_unless_stopped(phase, weights);
        return loss.has_value();
    };
    if (parameters.quantized()) return measure(results_.quantized, Phase::quantization_aware, "quantized");
    if (!measure(results_.full_precision, Phase::full_precision, "full_precision")) return false;
    if (options_.bits == 16 || results_.rounded) return true;
    // Full precision only, for a run that names its bits: what rounding costs is still worth knowing.
    optimizer.begin_quantization();
    const bool measured = measure(results_.rounded, Phase::full_precision, "rounded");
    parameters.use_quantization(false);
    optimizer.quantize();
    return measured;
}

}  // namespace train_qat
