// What a run tells the world: metrics.jsonl for programs, run.json for the record, a console line for people.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>

#include "model/storage/files.h"

namespace train_qat {

// OUTPUT/metrics.jsonl: one JSON object a line, each with an integer "step".
class MetricsWriter {
  public:
    // A new run (no `resume_from_step`) needs a directory without metrics.jsonl. A resumed run gives the step
    // of the first record that it will write again: records of that step and later ones are cut off,
    // atomically, and so is an unfinished last line, so that the file ends up as if the run had never
    // stopped. Creates the directory. Throws std::runtime_error.
    explicit MetricsWriter(const std::string& output_directory,
                           std::optional<int64_t> resume_from_step = std::nullopt);

    // Appends a record with one write, so readers see whole lines. NaN and infinity become null. Keys keep
    // their order. Throws std::runtime_error when the disk is full, std::logic_error without an integer
    // "step".
    void write(const nlohmann::ordered_json& record);

    // Flushes to the disk: before a checkpoint, so that a resume from it finds all records before it.
    void sync();

    const std::string& path() const { return path_; }

  private:
    std::string path_;
    std::unique_ptr<FileDescriptor> descriptor_;
    int64_t bytes_ = 0;
};

// Makes OUTPUT/metrics.jsonl a copy of another run's records up to `step`, before a MetricsWriter goes on
// with it. Without validations of `step` itself: there another run may measure what this one does not, at its
// switch or its end. Replaces an older file only with `replace`: std::runtime_error.
void copy_metrics(const std::string& from, int64_t step, const std::string& output_directory, bool replace);

// Writes `value`, indented, atomically; replaces an older one.
void write_run_json(const std::string& path, const nlohmann::ordered_json& value);

// "8.2s", "3m12s", "1h02m", "2d03h"; "?" for what is no duration.
std::string format_duration(double seconds);

// One console line. Fields that are absent are left out.
struct StepLine {
    int64_t step = 0;  // optimizer steps done
    int64_t total_steps = 0;
    std::string phase;  // "FP" or "QAT"
    double loss = 0;
    double learning_rate = 0;
    double gradient_norm = 0;  // before clipping
    double tokens_per_second = 0;
    std::optional<double> model_flops_utilization;  // 0 to 1
    std::optional<double> seconds_left;
};

// step  120/1000  FP   loss 4.1234  lr 1.00e-03  norm 0.532  6,450 tok/s  MFU 41.2%  12.0% done  ETA 3m12s
std::string format_step_line(const StepLine& line);

// step  120/1000  FP   validation loss 4.0312  perplexity 56.33  8,192 tokens in 1.3s
std::string format_validation_line(int64_t step, int64_t total_steps, const std::string& phase, double loss,
                                   int64_t tokens, double seconds);

// Exponential moving average of the throughput over steps. Numerator and denominator are averaged, not the
// quotient, so a rare slow step counts by its time. The first step warms caches and is left out once there is
// a second.
class ThroughputAverage {
  public:
    void add(int64_t tokens, double seconds);
    double tokens_per_second() const;  // 0 before the first step
    double seconds_per_step() const;

  private:
    int64_t steps_ = 0;
    double weight_ = 0;  // sum of the average's weights: corrects its bias towards zero at the start
    double tokens_ = 0;
    double seconds_ = 0;
};

// Throughput of a phase; the first step, which creates matmuls and touches memory, does not count when there
// are more.
class PhaseTime {
  public:
    void add(int64_t tokens, double seconds) {
        if (++steps_ == 2) tokens_ = 0, seconds_ = 0;
        tokens_ += static_cast<double>(tokens);
        seconds_ += seconds;
    }
    double tokens_per_second() const { return seconds_ > 0 ? tokens_ / seconds_ : 0; }

  private:
    int64_t steps_ = 0;
    double tokens_ = 0, seconds_ = 0;
};

// Prints the console lines of a run, each flushed, so that they also show up at once in a pipe or a file.
class ConsoleProgress {
  public:
    struct Step {
        int64_t step = 0;  // optimizer steps done
        std::string phase;
        double loss = 0, learning_rate = 0, gradient_norm = 0;
        int64_t tokens = 0;  // of this step, over all ranks
        double seconds = 0;  // of this step
    };

    // Prints every `print_every`-th step (>= 1), the first one after the start or the resume, and the last.
    // flops_per_token / peak_flops: for the model FLOPs utilization, peak over all ranks; 0 leaves it out.
    ConsoleProgress(std::ostream& output, int64_t total_steps, int64_t print_every = 1,
                    double flops_per_token = 0, double peak_flops = 0);

    void step(const Step& step);
    void validation(int64_t step, const std::string& phase, double loss, int64_t tokens, double seconds);

    const ThroughputAverage& throughput() const { return throughput_; }
    // Of the smoothed throughput; nothing if flops_per_token or peak_flops is 0.
    std::optional<double> model_flops_utilization() const;

  private:
    std::ostream& output_;
    int64_t total_steps_;
    int64_t print_every_;
    double flops_per_token_;
    double peak_flops_;
    bool first_ = true;
    ThroughputAverage throughput_;
};

}  // namespace train_qat
