// train_qat: the command line, the set-up of a run, and the one training loop.
//
// The loop runs over two step ranges that the plan fixes before it starts: [0, fp_steps) in full precision,
// then [fp_steps, total_steps) quantization-aware. Model and operations are the same in both; what differs is
// the phase, a compile-time parameter of train_range, and the grid that the optimizer rounds weights to.
//
// All ranks of a run execute the same steps, each on its own part of every batch; rank 0 writes and prints.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <ctime>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/patterns.h"
#include "data/tokenizer.h"
#include "kernels/backend.h"
#include "kernels/cpu/openmp_settings.h"
#include "kernels/ranks/agreement.h"
#include "model/generate.h"
#include "model/optimizer.h"
#include "model/plan/plan.h"
#include "model/plan/schedule.h"
#include "model/run/checkpoints.h"
#include "model/run/failure.h"
#include "model/run/job.h"
#include "model/run/log.h"
#include "model/run/options.h"
#include "model/run/reports.h"
#include "model/run/run_state.h"
#include "model/sweep/sweep.h"
#include "model/transformer.h"

namespace train_qat {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int interrupted_exit_code = 130;

// Set by Ctrl-C and by a job manager's TERM; the loop looks at it after every step. A second signal ends at
// once, unless it comes with the first: mpirun may send several.
volatile std::sig_atomic_t stop_requested = 0;
volatile std::time_t stop_requested_at = 0;
void request_stop(int signal) {
    constexpr std::time_t same_seconds = 2;
    const std::time_t now = std::time(nullptr);
    if (stop_requested != 0 && now - stop_requested_at > same_seconds) {
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
    if (stop_requested == 0) stop_requested_at = now;
    stop_requested = 1;
}

// ---- what the options ask for

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

ModelConfig config_of(const Options& options) {
    return resolve_config(options.size, vocabulary(options), options.sequence_length, options.shape);
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

LoaderOptions training_options(const Options& options, const ModelConfig& config,
                               const Communicator& communicator) {
    LoaderOptions loader = loader_options(options, config, true);
    loader.rank = communicator.rank();
    loader.world_size = communicator.size();
    return loader;
}

void require_training_data(const Options& options) {
    if (options.train_pattern.empty())
        throw std::runtime_error("-i: give the training shards (data/prepare.py makes them from text)");
}

// ---- a run

class Run {
  public:
    Run(const Options& options, const RunLayout& layout, Backend& backend, Communicator& communicator,
        const ModelConfig& config, const Plan& plan, Transformer& model, std::ostream& log)
        : options_(options),
          layout_(layout),
          config_(config),
          plan_(plan),
          backend_(backend),
          communicator_(communicator),
          model_(model),
          log_(log),
          optimizer_(backend, model.parameters(), options.optimizer, communicator),
          training_data_(options.train_pattern, training_options(options, config, communicator)),
          settings_(run_settings(options, config, plan, model.compute_type())),
          checkpoints_(options, backend, model.parameters(), optimizer_, settings_,
                       training_data_.fingerprint()),
          run_log_(options.output_directory, {settings_, layout, backend.describe()}, plan, is_first_rank()) {
        if (!options.validation_pattern.empty())
            validation_data_ = std::make_unique<DataLoader>(options.validation_pattern,
                                                            loader_options(options, config, false));
        if (!options.tokenizer.empty()) read_prompt();
    }

    StepObserver on_step;  // may be empty

    TrainingOutcome train() {
        const Clock::time_point start = Clock::now();
        inputs_.resize(layout_.batch * config_.sequence_length);
        targets_.resize(inputs_.size());
        check_ranks_agree(communicator_, settings_, layout_,
                          {training_data_.fingerprint(),
                           validation_data_ != nullptr ? validation_data_->fingerprint() : 0});
        begin();
        if (step_ > last_step()) {
            log_ << "step " << step_ << " is done already, -until " << last_step() << " is before it\n";
            return {};
        }
        const double peak_flops = sum_over_ranks(backend_.peak_flops(model_.compute_type()));
        run_together(communicator_, [&] {
            run_log_.begin(log_, first_metrics_step_, options_.print_every, training_flops_per_token(config_),
                           peak_flops);
        });
        const bool finished = train_steps();
        return {finished, results_, seconds_since(start)};
    }

  private:
    bool is_first_rank() const { return communicator_.rank() == 0; }
    // Steps to train in this process: all, or those before -until.
    int64_t last_step() const {
        return std::min(options_.until.value_or(plan_.total_steps), plan_.total_steps);
    }
    bool reached_until() const { return step_ >= last_step(); }
    // A part of a run: a trunk of others, or what -until cuts off.
    bool is_part() const { return options_.trunk || last_step() < plan_.total_steps; }

    // Both step ranges. False when a signal has ended them before.
    bool train_steps() {
        if (branched_) validate_where_branched();
        if (!train_range<Phase::full_precision>(plan_.fp_steps)) return stopped();
        if (reached_until() && is_part()) return stopped();
        if (plan_.qat_steps > 0 && !model_.parameters().quantized()) switch_to_quantization();
        if (!train_range<Phase::quantization_aware>(plan_.total_steps)) return stopped();
        finish();
        return true;
    }

    // The training loop: from the present step to `range_end`. False when it was to stop before.
    template <Phase phase>
    bool train_range(int64_t range_end) {
        const int64_t micro_batches = layout_.gradient_accumulation;
        while (step_ < range_end) {
            if (reached_until()) return false;
            const Clock::time_point start = Clock::now();
            for (int64_t micro = 0; micro < micro_batches; ++micro) {
                training_data_.next_batch(layout_.batch, inputs_.data(), targets_.data());
                model_.train_micro_batch(inputs_.data(), targets_.data(), micro,
                                         micro_batches * communicator_.size(),
                                         micro + 1 == micro_batches ? &optimizer_.data_parallel() : nullptr);
            }
            reports_.gather(model_.loss(), stop_requested != 0 || stop_wanted_);
            const double norm = optimizer_.finish_gradients();
            reports_.check(step_ + 1, norm, optimizer_.offender());
            const double rate = learning_rate(plan_, step_);
            optimizer_.step(rate);
            ++step_;
            const double loss = reports_.loss();
            run_log_.step(phase, step_, loss, norm, rate, seconds_since(start));
            if (on_step && on_step(step_, loss, run_log_.tokens_per_second())) stop_wanted_ = true;
            const bool last = step_ == range_end || reached_until();
            if (validation_is_due() && step_ != range_end) validate<phase>();
            if (reports_.stop() && step_ < plan_.total_steps) return false;
            if (save_is_due() && !last) save();
        }
        return true;
    }

    double sum_over_ranks(double mine) {
        double sum = 0;
        for (double number : gather_numbers(communicator_, mine)) sum += number;
        return sum;
    }

    bool save_is_due() const { return options_.save_every > 0 && step_ % options_.save_every == 0; }
    bool validation_is_due() const {
        return options_.validate_every > 0 && step_ % options_.validate_every == 0;
    }

    // Mean loss over the first -val_sequences sequences of the validation shards, each rank taking its part
    // of them, with the weights as they are quantized now. `weights` says how that is: full_precision,
    // rounded (never trained so) or quantized.
    double validate(Phase phase, const char* weights) {
        const Clock::time_point start = Clock::now();
        const int64_t sequences =
            std::min(options_.validation_sequences, validation_data_->samples_per_epoch());
        const int64_t first = first_row(sequences, communicator_.rank(), communicator_.size());
        const int64_t end = first_row(sequences, communicator_.rank() + 1, communicator_.size());
        validation_data_->seek(first);
        double sum = 0;
        for (int64_t i = first; i < end;) {
            const int64_t count = std::min(layout_.batch, end - i);
            validation_data_->next_batch(count, inputs_.data(), targets_.data());
            sum += model_.evaluate(inputs_.data(), targets_.data(), count) * static_cast<double>(count);
            i += count;
        }
        const double loss = sum_over_ranks(sum) / static_cast<double>(sequences);
        run_log_.validation(phase, step_, weights, loss, sequences * config_.sequence_length,
                            seconds_since(start));
        return loss;
    }
    template <Phase phase>
    void validate() {
        if (validation_data_)
            validate(phase, phase == Phase::full_precision ? "full_precision" : "quantized");
    }

    // Alone it would have. What the other run measured at this step is not copied.
    void validate_where_branched() {
        if (validation_is_due() && step_ > 0 && step_ < plan_.fp_steps) validate<Phase::full_precision>();
    }

    // The switch. What rounding alone would have cost is measured before the first quantized step.
    void switch_to_quantization() {
        const bool compare = validation_data_ && plan_.fp_steps > 0;
        if (compare) results_.full_precision = validate(Phase::full_precision, "full_precision");
        results_.fp_traffic = optimizer_.data_parallel().step_traffic();
        optimizer_.begin_quantization();
        if (compare) results_.rounded = validate(Phase::full_precision, "rounded");
        // Here and not in the loop: a checkpoint of the switch holds what was measured at it.
        if (save_is_due() && step_ > 0) save();
    }

    void begin() {
        const RunStart start = checkpoints_.start(plan_, log_);
        step_ = start.position.step;
        results_ = start.position.results;
        branched_ = start.branched;
        first_metrics_step_ = start.first_metrics_step;
        training_data_.seek(start.position.loader_position);
        reports_.set_last_checkpoint(start.position.checkpoint);
    }

    void save() {
        run_log_.sync();
        const std::string path = checkpoints_.save({step_, training_data_.position(), results_, ""});
        reports_.set_last_checkpoint(path);
        log_ << "saved " << path << std::endl;
    }

    // Whether it stopped where it was to.
    bool stopped() {
        save();
        log_ << "stopped after step " << step_ << "; go on with the same command and -resume" << std::endl;
        return reached_until();
    }

    void finish() {
        if (validation_data_) validate_at_the_end();
        DataParallel::StepTraffic& traffic = plan_.qat_steps > 0 ? results_.qat_traffic : results_.fp_traffic;
        traffic = optimizer_.data_parallel().step_traffic();
        save();
        if (is_first_rank() && tokenizer_ && options_.sample_tokens > 0) results_.sample = sample();
        run_log_.end(results_, log_);
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
        optimizer_.quantize();
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

    const Options& options_;
    const RunLayout& layout_;
    const ModelConfig& config_;
    const Plan& plan_;
    Backend& backend_;
    Communicator& communicator_;
    Transformer& model_;
    std::ostream& log_;
    Optimizer optimizer_;
    DataLoader training_data_;
    std::unique_ptr<DataLoader> validation_data_;
    const nlohmann::ordered_json settings_;
    RunCheckpoints checkpoints_;
    std::optional<Tokenizer> tokenizer_;
    std::vector<int32_t> prompt_;
    std::vector<int32_t> inputs_, targets_;  // (batch, T)
    RunLog run_log_;
    StepReports reports_{communicator_, config_.vocabulary};
    RunResults results_;
    int64_t step_ = 0;                           // optimizer steps done
    std::optional<int64_t> first_metrics_step_;  // of a metrics file that is there already
    bool branched_ = false;                      // off another run, just now
    bool stop_wanted_ = false;                   // this rank's observer asks to stop
};

// One run, by the ranks of `communicator`. on_step may be empty.
TrainingOutcome train(const Options& options, Backend& backend, Communicator& communicator, std::ostream& log,
                      const StepObserver& on_step) {
    RunLayout layout;
    ModelConfig config;
    Plan plan;
    std::unique_ptr<Transformer> model;
    std::unique_ptr<Run> run;
    // Mistakes show here, and all ranks then end alike.
    run_together(communicator, [&] {
        layout = run_layout(options, communicator.size());
        config = config_of(options);
        plan = plan_of(options, config, layout);
        StateShard shard;
        if (options.zero == 1) shard = {communicator.rank(), communicator.size()};
        QuantizationConfig quantization;
        quantization.bits = options.bits;
        quantization.group = options.group;
        quantization.master_type = options.master == "off" ? DType::bfloat16 : DType::float32;
        model = std::make_unique<Transformer>(backend, config, quantization,
                                              compute_type(options, backend, log), layout.batch, shard);
        log << describe(config) << "\n"
            << format_plan(plan, config) << describe(layout) << "\nmemory (" << name_of(model->compute_type())
            << (communicator.size() > 1 ? ", of each rank" : "") << ")\n"
            << model->memory_table() << std::endl;
        if (options.plan_only) return;
        require_training_data(options);
        run = std::make_unique<Run>(options, layout, backend, communicator, config, plan, *model, log);
        run->on_step = on_step;
        model->allocate();
    });
    return options.plan_only ? TrainingOutcome() : run->train();
}

// What a sweep has to know of its runs before it trains them. Remembers what shards they read.
class RunPlanner {
  public:
    SweepRunPlan operator()(const Options& options, int ranks) {
        require_training_data(options);
        const ModelConfig config = config_of(options);
        SweepRunPlan run;
        run.plan = plan_of(options, config, run_layout(options, ranks));
        run.flops_per_token = training_flops_per_token(config);
        nlohmann::ordered_json key = trunk_settings(run_settings(options, config, run.plan, DType::float32));
        // What else decides a run's numbers, or what is measured of it.
        key["data"] = fingerprint(options, config);
        key["settings"] = {options.device,
                           options.dtype,
                           options.group,
                           options.optimizer.scale_learning_rate_factor,
                           options.validation_pattern,
                           options.validation_sequences,
                           options.validate_every};
        run.trunk_key = key.dump();
        return run;
    }

  private:
    std::string fingerprint(const Options& options, const ModelConfig& config) {
        std::string& known = fingerprints_[{config.vocabulary, options.seed}];
        if (known.empty())
            known = std::to_string(
                DataLoader(options.train_pattern, loader_options(options, config, true)).fingerprint());
        return known;
    }

    std::map<std::pair<int64_t, uint64_t>, std::string> fingerprints_;
};

// The whole program on this rank.
int run(const std::vector<std::string>& arguments, const Options& options, World& world) {
    if (!options.sweep.empty()) {
        const SweepWork work{RunPlanner(), train, [] { return stop_requested != 0; }};
        return run_sweep(arguments, options, world, work) ? 0 : interrupted_exit_code;
    }
    std::ostream nowhere(nullptr);
    std::ostream& log = world.rank() == 0 ? std::cout : nowhere;
    std::unique_ptr<Backend> backend;
    world.run_together([&] {
        const int64_t rows = run_layout(options, world.size()).batch * options.sequence_length;
        backend = world.make_backend(options, rows, options.output_directory, log);
    });
    const std::unique_ptr<Communicator> communicator = world.connect(world.team(world.size()), *backend);
    if (world.size() > 1) log << "ranks: " << communicator->describe() << "\n";
    TrainingOutcome outcome;
    end_job_on_failure(world, [&] { outcome = train(options, *backend, *communicator, log, {}); });
    return outcome.finished ? 0 : interrupted_exit_code;
}

}  // namespace
}  // namespace train_qat

int main(int argc, char** argv) {
    train_qat::limit_openmp_spinning(argv);
    std::signal(SIGINT, train_qat::request_stop);
    std::signal(SIGTERM, train_qat::request_stop);
    std::signal(SIGUSR1, train_qat::request_stop);  // mpirun passes it on and, unlike after the others, waits
    std::signal(SIGXFSZ, SIG_IGN);  // a file over its limit is an error of the write, with a message
    return train_qat::run_program({argv + 1, argv + argc}, train_qat::run);
}
