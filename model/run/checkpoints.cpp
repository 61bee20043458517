#include "model/run/checkpoints.h"

#include <filesystem>
#include <stdexcept>

#include "data/patterns.h"
#include "data/shard.h"
#include "kernels/ranks/agreement.h"
#include "model/import/hugging_face_weights.h"
#include "model/run/metrics.h"
#include "model/storage/checkpoint.h"
#include "model/storage/parameter_tensors.h"
#include "model/storage/shard_checksums.h"
#include "model/units.h"

namespace train_qat {

namespace {

constexpr const char* resume_flag = "-resume";

}  // namespace

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
    const std::optional<std::string> found = find(log);
    run_on_rank_0(communicator_, [&] {
        data_.validation = options_.data.validation;
        data_.shards = expand_patterns(options_.data.training);
        data_.checksums =
            checksums_of_shards(data_.shards, shard_header_bytes, options_.output_directory, log);
    });
    if (const std::optional<std::string> checkpoint = found) {
        // A trunk belongs to all runs that branch off it, whichever of them it was planned for before.
        RunStart start{load(*checkpoint, options_.trunk ? &plan : nullptr, log), false, {}};
        start.first_metrics_step = start.position.step + 1;
        if (!options_.resume_from.empty())
            run_on_rank_0(communicator_, [&] { set_aside_later(start.position.step, log); });
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
    if (!options_.resume_from.empty()) {
        std::string name;
        run_on_rank_0(communicator_, [&] { name = find_named(); });
        return output + "/" + text_of_rank_0(communicator_, name);
    }
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

// The name of the checkpoint of -resume_from: a step, its directory's name or a path to it.
std::string RunCheckpoints::find_named() const {
    const std::string& output = options_.output_directory;
    const std::string flag = "-resume_from " + options_.resume_from + ": ";
    const std::filesystem::path asked = std::filesystem::path(options_.resume_from + "/").parent_path();
    const auto step = parse_number<int64_t>(options_.resume_from);
    const std::string name = step ? checkpoint_name(*step) : asked.filename().string();
    const std::filesystem::path place = std::filesystem::path(output) / name;
    std::error_code ignored;
    if (!step && asked.has_parent_path() && !std::filesystem::equivalent(asked, place, ignored))
        throw std::runtime_error(flag + "is no checkpoint in -o " + output +
                                 "; one of another run is for -from");
    if (is_checkpoint(place.string())) return name;
    throw std::runtime_error(flag + output + " holds no valid checkpoint of that name" +
                             other_checkpoints(name));
}

// "; -resume_from 20 or 10 ..."; of the valid ones, the latest first.
std::string RunCheckpoints::other_checkpoints(const std::string& path) const {
    std::vector<CheckpointEntry> entries = list_checkpoints(options_.output_directory);
    std::string steps;
    for (size_t i = entries.size(); i-- > 0;)
        if (std::filesystem::path(entries[i].path).filename() != std::filesystem::path(path).filename())
            steps += (steps.empty() ? "" : " or ") + std::to_string(entries[i].step);
    return steps.empty() ? "; there is no other one" : "; -resume_from " + steps + " goes on from there";
}

// They would else be taken for the latest by the next -resume, and push out new ones.
void RunCheckpoints::set_aside_later(int64_t step, std::ostream& log) const {
    for (const CheckpointEntry& later : list_checkpoint_names(options_.output_directory)) {
        if (later.step <= step) continue;
        std::string aside = later.path + ".set_aside";
        for (int number = 2; std::filesystem::exists(aside); ++number)
            aside = later.path + ".set_aside-" + std::to_string(number);
        rename_or_throw(later.path, aside);
        log << "set aside: " << later.path << " is now " << aside << std::endl;
    }
}

// flag: -resume or -from.
void RunCheckpoints::check_data(const CheckpointReader& reader, const char* flag, std::ostream& log) {
    run_on_rank_0(communicator_, [&] {
        check_shards_unchanged(reader.state(), data_, flag);
        if (flag == resume_flag) continue_validation(reader.state(), reader.step(), data_, log);
    });
}

// branch: the checkpoint may be of another run, with a plan whose first steps are those of this one.
RunPosition RunCheckpoints::load(const std::string& path, const Plan* branch, std::ostream& log) {
    const CheckpointReader reader(path, communicator_);
    const RunState state = run_together(communicator_, [&] {
        return branch == nullptr
                   ? read_run_state(reader.state(), settings_, data_fingerprint_)
                   : read_branch_state(reader.state(), settings_, data_fingerprint_, *branch, reader.step());
    });
    const bool own = path != options_.from;
    check_data(reader, own ? resume_flag : "-from", log);
    parameters_.use_quantization(state.quantized);
    try {
        reader.load_model(backend_, communicator_, model_tensors(parameters_));
        reader.load_optimizer(backend_, communicator_, optimizer_tensors(parameters_));
    } catch (const std::runtime_error& error) {
        const bool joint = communicator_.size() == 1 || dynamic_cast<const JointError*>(&error) != nullptr;
        if (!joint || !own) throw;
        throw JointError(error.what() + other_checkpoints(path));
    }
    optimizer_.quantize();
    optimizer_.restore_steps(state.optimizer_steps, state.scale_steps);
    log << (own ? "resume" : "branch") << ": step " << reader.step() << " from " << reader.path() << "\n";
    return {reader.step(), state.loader_position, state.results, reader.path()};
}

std::string RunCheckpoints::save(const RunPosition& position) {
    RunState state;
    state.quantized = parameters_.quantized();
    state.optimizer_steps = optimizer_.steps();
    state.scale_steps = optimizer_.scale_steps();
    state.loader_position = position.loader_position;
    state.results = position.results;
    nlohmann::json json = to_json(state, settings_, data_fingerprint_);
    add_data_record(data_, json);
    const StateShard part{communicator_.rank(), communicator_.size()};
    const std::string path = save_checkpoint(
        options_.output_directory, backend_, communicator_,
        {position.step, model_tensors(parameters_, part), optimizer_tensors(parameters_, part), json},
        options_.resume);
    run_on_rank_0(communicator_, [&] { prune_checkpoints(options_.output_directory, options_.keep); });
    return path;
}

}  // namespace train_qat
