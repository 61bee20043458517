#include "model/run_checkpoints.h"

#include <filesystem>
#include <stdexcept>

#include "model/checkpoint.h"
#include "model/parameter_tensors.h"
#include "model/together.h"

namespace train_qat {

RunCheckpoints::RunCheckpoints(const std::string& output_directory, Backend& backend, Parameters& parameters,
                               Optimizer& optimizer, const nlohmann::ordered_json& settings,
                               uint64_t data_fingerprint)
    : output_directory_(output_directory),
      backend_(backend),
      parameters_(parameters),
      optimizer_(optimizer),
      settings_(settings),
      data_fingerprint_(data_fingerprint) {}

std::optional<std::string> RunCheckpoints::find(bool resume, std::ostream& log) const {
    Communicator& communicator = optimizer_.data_parallel().communicator();
    std::vector<std::string> passed_over;
    run_on_rank_0(communicator, [&] {
        if (std::filesystem::exists(output_directory_) && !std::filesystem::is_directory(output_directory_))
            throw std::runtime_error("-o " + output_directory_ + ": is not a directory");
    });
    const auto checkpoint = find_latest_checkpoint(output_directory_, communicator, &passed_over);
    run_on_rank_0(communicator, [&] {
        if (checkpoint && !resume)
            throw std::runtime_error("-o " + output_directory_ + ": holds a run already (" + *checkpoint +
                                     "); go on with it by -resume, or choose another directory");
        // Starting anew would cut off the metrics of a run that has come far.
        if (!checkpoint && resume && !passed_over.empty())
            throw std::runtime_error("-resume: " + output_directory_ +
                                     " holds no valid checkpoint: " + passed_over.back());
    });
    if (resume)
        for (const std::string& line : passed_over) log << "passed over: " << line << "\n";
    return checkpoint;
}

RunPosition RunCheckpoints::load(const std::string& path) {
    return load(path, nullptr);
}

RunPosition RunCheckpoints::load_branch(const std::string& path, const Plan& plan) {
    return load(path, &plan);
}

RunPosition RunCheckpoints::load(const std::string& path, const Plan* branch) {
    Communicator& communicator = optimizer_.data_parallel().communicator();
    const CheckpointReader reader(path, communicator);
    RunState state;
    run_together(communicator, [&] {
        state = branch == nullptr
                    ? read_run_state(reader.state(), settings_, data_fingerprint_)
                    : read_branch_state(reader.state(), settings_, data_fingerprint_, *branch, reader.step());
    });
    parameters_.use_quantization(state.quantized);
    reader.load_model(backend_, communicator, model_tensors(parameters_));
    reader.load_optimizer(backend_, communicator, optimizer_tensors(parameters_));
    optimizer_.quantize();
    optimizer_.restore_steps(state.optimizer_steps, state.scale_steps);
    return {reader.step(), state.loader_position, state.results, reader.path()};
}

std::string RunCheckpoints::save(const RunPosition& position, bool replace, int64_t keep) {
    Communicator& communicator = optimizer_.data_parallel().communicator();
    RunState state;
    state.quantized = parameters_.quantized();
    state.optimizer_steps = optimizer_.steps();
    state.scale_steps = optimizer_.scale_steps();
    state.loader_position = position.loader_position;
    state.results = position.results;
    const StateShard part{communicator.rank(), communicator.size()};
    const std::string path =
        save_checkpoint(output_directory_, backend_, communicator,
                        {position.step, model_tensors(parameters_, part),
                         optimizer_tensors(parameters_, part), to_json(state, settings_, data_fingerprint_)},
                        replace);
    run_on_rank_0(communicator, [&] { prune_checkpoints(output_directory_, keep); });
    return path;
}

}  // namespace train_qat
