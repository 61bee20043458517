// train_qat: the command line, the set-up of a run, and the one training loop.
//
// The loop runs over two step ranges that the plan fixes before it starts: [0, fp_steps) in full precision,
// then [fp_steps, total_steps) quantization-aware. Model and operations are the same in both; what differs is
// the phase, a compile-time parameter of train_range, and the grid that the optimizer rounds weights to.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/tokenizer.h"
#include "kernels/backend.h"
#include "kernels/cpu/openmp_settings.h"
#include "kernels/cuda/cuda_options.h"
#include "model/checkpoint.h"
#include "model/command_line.h"
#include "model/generate.h"
#include "model/metrics.h"
#include "model/optimizer.h"
#include "model/parameter_tensors.h"
#include "model/plan.h"
#include "model/run_guard.h"
#include "model/run_state.h"
#include "model/schedule.h"
#include "model/transformer.h"

namespace train_qat {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Set by Ctrl-C and by a job manager's TERM; the loop looks at it after every step. A second signal ends at
// once.
volatile std::sig_atomic_t stop_requested = 0;
void request_stop(int signal) {
    stop_requested = 1;
    std::signal(signal, SIG_DFL);
}

QatGemm qat_gemm(const std::string& name) {
    if (name == "fused") return QatGemm::fused;
    return name == "cublaslt" ? QatGemm::cublaslt : QatGemm::automatic;
}

std::unique_ptr<Backend> make_backend(const Options& options) {
    constexpr int first_device = 0;
    const std::string missing = options.device == "cpu" ? "" : cuda_unavailable(first_device);
    std::unique_ptr<Backend> backend;
    if (options.device == "cuda" || (options.device == "auto" && missing.empty())) {
        CudaOptions cuda;
        cuda.device = first_device;
        cuda.qat_gemm = qat_gemm(options.qat_gemm);
        cuda.matmul_rows = options.batch * options.sequence_length;
        cuda.tuning_file = (std::filesystem::path(options.output_directory) / "cuda_tuning.txt").string();
        cuda.report = [](const std::string& line) { std::cout << line << std::endl; };
        backend = make_cuda_backend(cuda);
    } else {
        if (options.master == "off")
            throw std::runtime_error("-master off: only the CUDA backend rounds stochastically, and " + missing);
        backend = make_cpu_backend(options.threads);
    }
    std::cout << "device: " << backend->describe()
              << (missing.empty() ? "" : " (-device auto: " + missing + ")") << "\n";
    return backend;
}

DType compute_type(const Options& options, const Backend& backend) {
    const bool fast_bfloat16 = backend.supports(DType::bfloat16);
    if (options.dtype == "fp32") return DType::float32;
    if (options.dtype == "bf16" && !fast_bfloat16)
        throw std::runtime_error("-dtype bf16: this processor has no bfloat16 dot products; use -dtype fp32");
    if (fast_bfloat16) return DType::bfloat16;
    std::cout << "dtype: float32 (-dtype auto: this processor has no bfloat16 dot products)\n";
    return DType::float32;
}

// The vocabulary that was asked for, or that of the training data.
int64_t vocabulary(const Options& options) {
    if (options.vocabulary) return *options.vocabulary;
    constexpr int64_t default_vocabulary = 32000;
    if (options.train_pattern.empty()) return default_vocabulary;
    const uint32_t of_shards = Shard(expand_patterns(options.train_pattern).front()).vocabulary_size();
    if (of_shards == 0)
        throw std::runtime_error("-vocab: the shards of -i do not say their vocabulary; give it with -vocab");
    return of_shards;
}

Plan plan_of(const Options& options, const ModelConfig& config) {
    PlanRequest request = options.plan;
    request.parameters = parameter_count(config);
    request.tokens_per_step = options.batch * options.gradient_accumulation * options.sequence_length;
    return make_plan(request);
}

LoaderOptions loader_options(const Options& options, const ModelConfig& config, bool shuffle) {
    LoaderOptions loader;
    loader.sequence_length = config.sequence_length;
    loader.seed = options.seed;
    loader.shuffle = shuffle;
    loader.vocabulary_size = static_cast<uint32_t>(config.vocabulary);
    if (!options.tokenizer.empty()) loader.expected_tokenizer_hash = tokenizer_hash(options.tokenizer);
    return loader;
}

class Run {
  public:
    Run(const Options& options, Backend& backend, const ModelConfig& config, const Plan& plan,
        Transformer& model)
        : options_(options),
          config_(config),
          plan_(plan),
          backend_(backend),
          model_(model),
          optimizer_(backend, model.parameters(), options.optimizer),
          training_data_(options.train_pattern, loader_options(options, config, true)),
          settings_(run_settings(options, config, plan, model.compute_type())) {
        if (!options.validation_pattern.empty())
            validation_data_ = std::make_unique<DataLoader>(options.validation_pattern,
                                                            loader_options(options, config, false));
        if (!options.tokenizer.empty()) read_prompt();
    }

    // Returns the program's exit code.
    int train() {
        inputs_.resize(options_.batch * config_.sequence_length);
        targets_.resize(inputs_.size());
        start_or_resume();
        metrics_ = std::make_unique<MetricsWriter>(
            options_.output_directory, options_.resume ? std::optional<int64_t>(step_ + 1) : std::nullopt);
        write_run_record();
        progress_ = std::make_unique<ConsoleProgress>(std::cout, plan_.total_steps, options_.print_every,
                                                      training_flops_per_token(config_),
                                                      backend_.peak_flops(model_.compute_type()));
        if (!train_range<Phase::full_precision>(plan_.fp_steps)) return stopped();
        if (plan_.qat_steps > 0 && !model_.parameters().quantized()) switch_to_quantization();
        if (!train_range<Phase::quantization_aware>(plan_.total_steps)) return stopped();
        finish();
        return 0;
    }

  private:
    // The training loop: from the present step to `end`. False when it was asked to stop before.
    template <Phase phase>
    bool train_range(int64_t end) {
        while (step_ < end) {
            const Clock::time_point start = Clock::now();
            for (int64_t micro = 0; micro < options_.gradient_accumulation; ++micro) {
                training_data_.next_batch(options_.batch, inputs_.data(), targets_.data());
                model_.train_micro_batch(inputs_.data(), targets_.data(), micro,
                                         options_.gradient_accumulation);
            }
            const double loss = model_.loss();
            const double norm = optimizer_.finish_gradients();
            guard_.check(step_ + 1, loss, norm, optimizer_.offender());
            const double rate = learning_rate(plan_, step_);
            optimizer_.step(rate);
            ++step_;
            report<phase>(loss, norm, rate, seconds_since(start));
            const bool last = step_ == end;
            if (options_.validate_every > 0 && step_ % options_.validate_every == 0 && !last)
                validate<phase>();
            if (stop_requested && step_ < plan_.total_steps) return false;
            if (save_is_due() && !last) save();
        }
        return true;
    }

    bool save_is_due() const { return options_.save_every > 0 && step_ % options_.save_every == 0; }

    template <Phase phase>
    void report(double loss, double norm, double rate, double seconds) {
        PhaseTime& time = phase == Phase::full_precision ? fp_time_ : qat_time_;
        time.add(plan_.tokens_per_step, seconds);
        metrics_->write({{"step", step_},
                         {"phase", to_string(phase)},
                         {"loss", loss},
                         {"learning_rate", rate},
                         {"gradient_norm", norm},
                         {"tokens_per_second", plan_.tokens_per_step / seconds}});
        progress_->step({step_, to_string(phase), loss, rate, norm, plan_.tokens_per_step, seconds});
    }

    // Mean loss over the first -val_batches micro-batches of the validation shards, with the weights as they
    // are quantized now. `weights` says how that is: full_precision, rounded (never trained so) or quantized.
    double validate(Phase phase, const char* weights) {
        const Clock::time_point start = Clock::now();
        const int64_t samples = validation_data_->samples_per_epoch();
        const int64_t batch = std::min(options_.batch, samples);
        const int64_t batches = std::min(options_.validation_batches, samples / batch);
        validation_data_->seek(0);
        double loss = 0;
        for (int64_t i = 0; i < batches; ++i) {
            validation_data_->next_batch(batch, inputs_.data(), targets_.data());
            loss += model_.evaluate(inputs_.data(), targets_.data(), batch) / static_cast<double>(batches);
        }
        metrics_->write(
            {{"step", step_}, {"phase", to_string(phase)}, {"validation_loss", loss}, {"weights", weights}});
        progress_->validation(step_, std::string(to_string(phase)) + " " + weights, loss,
                              batches * batch * config_.sequence_length, seconds_since(start));
        return loss;
    }
    template <Phase phase>
    void validate() {
        if (validation_data_)
            validate(phase, phase == Phase::full_precision ? "full_precision" : "quantized");
    }

    // The switch. What rounding alone would have cost is measured before the first quantized step.
    void switch_to_quantization() {
        const bool compare = validation_data_ && plan_.fp_steps > 0;
        if (compare) results_.full_precision = validate(Phase::full_precision, "full_precision");
        optimizer_.begin_quantization();
        if (compare) results_.rounded = validate(Phase::full_precision, "rounded");
        // Here and not in the loop: a checkpoint of the switch holds what was measured at it.
        if (save_is_due() && step_ > 0) save();
    }

    void start_or_resume() {
        const std::string& output = options_.output_directory;
        if (std::filesystem::exists(output) && !std::filesystem::is_directory(output))
            throw std::runtime_error("-o " + output + ": is not a directory");
        std::vector<std::string> passed_over;
        const std::optional<std::string> checkpoint = find_latest_checkpoint(output, &passed_over);
        if (checkpoint && !options_.resume)
            throw std::runtime_error("-o " + output + ": holds a run already (" + *checkpoint +
                                     "); go on with it by -resume, or choose another directory");
        if (options_.resume)
            for (const std::string& line : passed_over) std::cout << "passed over: " << line << "\n";
        if (!checkpoint) {
            // Starting anew would cut off the metrics of a run that has come far.
            if (options_.resume && !passed_over.empty())
                throw std::runtime_error("-resume: " + output +
                                         " holds no valid checkpoint: " + passed_over.back());
            if (options_.resume)
                std::cout << "resume: no checkpoint in " << options_.output_directory
                          << ", starting at step 0\n";
            model_.parameters().initialize(backend_, options_.seed);
            return;
        }
        const CheckpointReader reader(*checkpoint);
        const RunState state = read_run_state(reader.state(), settings_, training_data_.fingerprint());
        model_.parameters().use_quantization(state.quantized);
        reader.load_model(backend_, model_tensors(model_.parameters()));
        reader.load_optimizer(backend_, optimizer_tensors(model_.parameters()));
        model_.parameters().quantize(backend_);
        optimizer_.restore_steps(state.optimizer_steps, state.scale_steps);
        training_data_.seek(state.loader_position);
        results_ = state.results;
        step_ = reader.step();
        guard_.set_last_checkpoint(reader.path());
        std::cout << "resume: step " << step_ << " from " << reader.path() << "\n";
    }

    void save() {
        metrics_->sync();
        RunState state;
        state.quantized = model_.parameters().quantized();
        state.optimizer_steps = optimizer_.steps();
        state.scale_steps = optimizer_.scale_steps();
        state.loader_position = training_data_.position();
        state.results = results_;
        const std::string path = save_checkpoint(
            options_.output_directory, backend_,
            {step_, model_tensors(model_.parameters()), optimizer_tensors(model_.parameters()),
             to_json(state, settings_, training_data_.fingerprint())},
            options_.resume);
        guard_.set_last_checkpoint(path);
        prune_checkpoints(options_.output_directory, options_.keep);
        std::cout << "saved " << path << std::endl;
    }

    int stopped() {
        save();
        std::cout << "stopped after step " << step_ << "; go on with the same command and -resume"
                  << std::endl;
        constexpr int interrupted_exit_code = 130;
        return interrupted_exit_code;
    }

    void finish() {
        if (validation_data_) validate_at_the_end();
        save();
        results_.fp_tokens_per_second = fp_time_.tokens_per_second();
        results_.qat_tokens_per_second = qat_time_.tokens_per_second();
        if (tokenizer_ && options_.sample_tokens > 0) results_.sample = sample();
        write_run_record();
        std::cout << "\n" << results_table(results_, plan_) << std::flush;
    }

    // A checkpoint of the last step holds what was measured at it: a resume from there does not measure
    // again.
    void validate_at_the_end() {
        if (model_.parameters().quantized()) {
            if (!results_.quantized) results_.quantized = validate(Phase::quantization_aware, "quantized");
            return;
        }
        if (results_.full_precision) return;
        results_.full_precision = validate(Phase::full_precision, "full_precision");
        if (options_.bits == 16) return;
        // Full precision only, for a run that names its bits: what rounding costs is still worth knowing.
        optimizer_.begin_quantization();
        results_.rounded = validate(Phase::full_precision, "rounded");
        model_.parameters().use_quantization(false);
        model_.parameters().quantize(backend_);
    }

    // Before the training: a mistake here would else show up at its end.
    void read_prompt() {
        tokenizer_.emplace(options_.tokenizer);
        if (tokenizer_->vocabulary_size() > static_cast<uint64_t>(config_.vocabulary))
            throw std::runtime_error("-tokenizer " + options_.tokenizer + ": has " +
                                     std::to_string(tokenizer_->vocabulary_size()) +
                                     " tokens, more than the vocabulary of the model, " +
                                     std::to_string(config_.vocabulary) +
                                     "; give its own shards, or a larger -vocab");
        if (tokenizer_->bos_id() >= 0) prompt_.push_back(tokenizer_->bos_id());
        for (int32_t id : tokenizer_->encode(options_.prompt)) prompt_.push_back(id);
        if (prompt_.empty())
            throw std::runtime_error("-prompt: is empty, and " + options_.tokenizer + " has no begin token");
    }

    std::string sample() {
        SamplingOptions sampling;
        sampling.tokens = options_.sample_tokens;
        sampling.temperature = options_.temperature;
        sampling.end_token = tokenizer_->eos_id();
        sampling.seed = options_.seed;
        std::vector<int32_t> ids = generate(model_, prompt_, sampling);
        // The model's vocabulary may be padded beyond the tokenizer's.
        std::erase_if(ids,
                      [&](int32_t id) { return id >= static_cast<int32_t>(tokenizer_->vocabulary_size()); });
        return tokenizer_->decode(ids);
    }

    void write_run_record() const {
        write_run_json((std::filesystem::path(options_.output_directory) / "run.json").string(),
                       run_record(settings_, plan_, results_, backend_.describe()));
    }

    const Options& options_;
    const ModelConfig& config_;
    const Plan& plan_;
    Backend& backend_;
    Transformer& model_;
    Optimizer optimizer_;
    DataLoader training_data_;
    std::unique_ptr<DataLoader> validation_data_;
    const nlohmann::ordered_json settings_;
    std::optional<Tokenizer> tokenizer_;
    std::vector<int32_t> prompt_;
    std::vector<int32_t> inputs_, targets_;  // (batch, T)
    std::unique_ptr<MetricsWriter> metrics_;
    std::unique_ptr<ConsoleProgress> progress_;
    RunGuard guard_{config_.vocabulary};
    RunResults results_;
    PhaseTime fp_time_, qat_time_;
    int64_t step_ = 0;  // optimizer steps done
};

int run(const Options& options) {
    const ModelConfig config =
        resolve_config(options.size, vocabulary(options), options.sequence_length, options.shape);
    const Plan plan = plan_of(options, config);
    const std::unique_ptr<Backend> backend = make_backend(options);
    const DType dtype = compute_type(options, *backend);
    QuantizationConfig quantization;
    quantization.bits = plan.qat_steps > 0 || options.bits < 16 ? options.bits : 16;
    quantization.group = options.group;
    quantization.master_type = options.master == "off" ? DType::bfloat16 : DType::float32;
    Transformer model(*backend, config, quantization, dtype, options.batch);
    std::cout << describe(config) << "\n"
              << format_plan(plan, config) << "\nmemory (" << name_of(dtype) << ")\n"
              << model.memory_table() << std::endl;
    if (options.plan_only) return 0;
    if (options.train_pattern.empty())
        throw std::runtime_error("-i: give the training shards (data/prepare.py makes them from text)");
    Run run(options, *backend, config, plan, model);
    model.allocate();
    return run.train();
}

}  // namespace
}  // namespace train_qat

int main(int argc, char** argv) {
    train_qat::limit_openmp_spinning(argv);
    std::signal(SIGINT, train_qat::request_stop);
    std::signal(SIGTERM, train_qat::request_stop);
    std::signal(SIGXFSZ, SIG_IGN);  // a file over its limit is an error of the write, with a message
    constexpr int user_error = 2, internal_error = 1;
    try {
        const auto options = train_qat::parse_command_line({argv + 1, argv + argc});
        return options ? train_qat::run(*options) : 0;
    } catch (const std::logic_error& error) {
        std::cerr << "train_qat: internal error: " << error.what() << std::endl;
        return internal_error;
    } catch (const std::exception& error) {
        std::cerr << "train_qat: error: " << error.what() << std::endl;
        return user_error;
    }
}
