// What a run tells the world while it goes on: metrics.jsonl, run.json, the console, and TensorBoard where it is asked
// to. By rank 0; on the other ranks it does nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "model/job/settings.h"
#include "model/plan/plan.h"
#include "model/run/event_file.h"
#include "model/run/metrics.h"
#include "model/run/results.h"

namespace train_qat {

class RunLog {
  public:
    // device: as run.json names it. active: on rank 0.
    RunLog(const std::string& output_directory, const RunSettings& settings, const Plan& plan,
           const std::string& device, bool active);

    // Opens metrics.jsonl, from `first_step` on where it is there already, and writes run.json. The others
    // come after it. flops_per_token / peak: see ConsoleProgress; the console says which peak it is.
    void begin(std::ostream& console, std::optional<int64_t> first_step, int64_t print_every,
               double flops_per_token, const PeakFlops& peak);
    // After begin(): the curves go into an event file too.
    void open_event_file(std::optional<int64_t> first_step);

    // A step that has been done.
    void step(Phase phase, int64_t step, double loss, double norm, double learning_rate, double seconds);
    // `weights`: full_precision, rounded or quantized.
    void validation(Phase phase, int64_t step, const char* weights, double loss, int64_t tokens,
                    double seconds);

    // To the disk, before a checkpoint.
    void sync();

    // Throughput of the last steps.
    double tokens_per_second() const;

    // Completes the results with the speed of both ranges, writes run.json and prints the closing table.
    void end(RunResults& results, std::ostream& console);

  private:
    void write_record(const RunResults& results) const;

    const std::string output_directory_;
    const RunSettings settings_;
    const Plan& plan_;
    const std::string device_;
    const bool active_;
    PeakFlops peak_;
    std::unique_ptr<MetricsWriter> metrics_;
    std::unique_ptr<EventFile> events_;
    std::unique_ptr<ConsoleProgress> progress_;
    PhaseTime fp_time_, qat_time_;
};

}  // namespace train_qat
