#include "model/run/checkpoints.h"

#include <filesystem>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/import/hugging_face_weights.h"
#include "model/run/metrics.h"
#include "model/storage/checkpoint.h"
#include "model/storage/parameter_tensors.h"

namespace train_qat {

RunCheckpoints::RunCheckpoints(const Options& options, Backend& backend, Parameters& parameters,
                               Optimizer& optimizer, const RunSettings& settings, uint64_t data_fingerprint)
    : options_(options),
      backend_(backend),
      parameters_(parameters),
      optimizer_(optimizer),
      communicator_(optimizer.data_parallel().communicator()),
      settings_(settings),
      data_fingerprint_(data_fingerprint) {}

RunStart RunCheckpoints::start(const Plan& plan, std::ostream& log) {
    if (const std::optional<std::string> checkpoint = find(log)) {
        // A trunk belongs to all runs that branch off it, whichever of them it was planned for before.
        RunStart start{load(*checkpoint, options_.trunk ? &plan : nullptr, log), false, {}};
        start.first_metrics_step = start.position.step + 1;
        return start;
    }
    if (options_.resume)
        log << "resume: no checkpoint in " << options_.output_directory << ", starting "
            << (options_.from.empty() ? "at step 0" : "from " + options_.from) << "\n";
    if (!options_.from.empty()) return branch_off(plan, log);
    begin_anew(log);
    RunStart start;
    if (options_.resume) start.first_metrics_step = 0;
    return start;
}

// New weights, or those of -init_from.
void RunCheckpoints::begin_anew(std::ostream& log) {
    if (options_.initial_model.empty()) {
        parameters_.initialize(backend_, options_.seed);
    } else {
        const HuggingFaceWeights weights =
            run_together(communicator_, [&] { return HuggingFaceWeights(options_.initial_model); });
        weights.load(backend_, communicator_, parameters_);
        log << "weights: of " << options_.initial_model << "\n";
    }
    optimizer_.quantize();
}

// The metrics of a branch are those of the run alone: the other run's up to here.
RunStart RunCheckpoints::branch_off(const Plan& plan, std::ostream& log) {
    RunStart start{load(options_.from, &plan, log), true, {}};
    start.first_metrics_step = start.position.step + 1;
    const std::filesystem::path of_other =
        std::filesystem::path(options_.from).lexically_normal().parent_path() / "metrics.jsonl";
    run_on_rank_0(communicator_, [&] {
        if (std::filesystem::exists(of_other))
            copy_metrics(of_other.string(), start.position.step, options_.output_directory, options_.resume);
        else
            log << "branch: " << of_other.string() << " is not there; metrics begin at step "
                << start.position.step + 1 << "\n";
    });
    return start;
}

// The latest checkpoint of the run, if there is one.
std::optional<std::string> RunCheckpoints::find(std::ostream& log) const {
    const std::string& output = options_.output_directory;
    std::vector<std::string> passed_over;
    const auto checkpoint = find_latest_checkpoint(output, communicator_, &passed_over);
    run_on_rank_0(communicator_, [&] {
        if (checkpoint && !options_.resume)
            throw std::runtime_error("-o " + output + ": holds a run already (" + *checkpoint +
                                     "); go on with it by -resume, or choose another directory");
        // Starting anew would cut off the metrics of a run that has come far.
        if (!checkpoint && options_.resume && !passed_over.empty())
            throw std::runtime_error("-resume: " + output +
                                     " holds no valid checkpoint: " + passed_over.back());
    });
    if (options_.resume)
        for (const std::string& line : passed_over) log << "passed over: " << line << "\n";
    return checkpoint;
}

// branch: the checkpoint may be of another run, with a plan whose first steps are those of this one.
RunPosition RunCheckpoints::load(const std::string& path, const Plan* branch, std::ostream& log) {
    const CheckpointReader reader(path, communicator_);
    const RunState state = run_together(communicator_, [&] {
        return branch == nullptr
                   ? read_run_state(reader.state(), settings_, data_fingerprint_)
                   : read_branch_state(reader.state(), settings_, data_fingerprint_, *branch, reader.step());
    });
    parameters_.use_quantization(state.quantized);
    reader.load_model(backend_, communicator_, model_tensors(parameters_));
    reader.load_optimizer(backend_, communicator_, optimizer_tensors(parameters_));
    optimizer_.quantize();
    optimizer_.restore_steps(state.optimizer_steps, state.scale_steps);
    log << (path == options_.from ? "branch" : "resume") << ": step " << reader.step() << " from "
        << reader.path() << "\n";
    return {reader.step(), state.loader_position, state.results, reader.path()};
}

std::string RunCheckpoints::save(const RunPosition& position) {
    RunState state;
    state.quantized = parameters_.quantized();
    state.optimizer_steps = optimizer_.steps();
    state.scale_steps = optimizer_.scale_steps();
    state.loader_position = position.loader_position;
    state.results = position.results;
    const StateShard part{communicator_.rank(), communicator_.size()};
    const std::string path =
        save_checkpoint(options_.output_directory, backend_, communicator_,
                        {position.step, model_tensors(parameters_, part),
                         optimizer_tensors(parameters_, part), to_json(state, settings_, data_fingerprint_)},
                        options_.resume);
    run_on_rank_0(communicator_, [&] { prune_checkpoints(options_.output_directory, options_.keep); });
    return path;
}

}  // namespace train_qat
