// A run on its way: where it stands, and what happens between its steps.
#pragma once

#include <chrono>
#include <cstdint>

#include "model/run/outcome.h"
#include "model/run/setup.h"

namespace train_qat {

// Everything that is not const is collective.
class Run {
  public:
    // Ranks compare their settings and data; then weights, optimizer and data stand where the run begins:
    // anew, at a checkpoint of its own, or where it branches off another run. std::runtime_error.
    explicit Run(Setup& setup);

    int64_t step() const { return step_; }  // optimizer steps done
    const RunResults& results() const { return results_; }

    // Nothing is left to do before -until, which is then said.
    bool is_done_already() const;
    // Whether -until ends the run here, or the end of the plan does.
    bool reached_until() const { return step_ >= last_step(); }
    // Whether a part of a run was asked for and is done: a trunk of others, or what -until cuts off.
    bool part_is_done() const;

    // Opens the metrics and begins to report steps.
    void begin();
    // An optimizer step is done.
    void count_step() { ++step_; }
    // After -val_every and -save_every steps. What happens at the end of a range is measured and saved apart.
    void validate_if_due(Phase phase);
    void save_if_due();

    // What the run that this one has just branched off from has measured at this step is not copied.
    void validate_where_branched();
    // From full precision to quantized weights, unless they are so already. What rounding alone would have
    // cost is measured before the first quantized step.
    void switch_to_quantization();
    // A checkpoint to go on from. Returns whether the run stopped where it was to.
    bool stop();
    // Last validations, checkpoint, sample of text, and the closing table. False when a signal has ended the validations: the
    // checkpoint is there, and who resumes it measures what is missing.
    bool finish();

  private:
    bool is_first_rank() const { return setup_.communicator.rank() == 0; }
    int64_t last_step() const;
    bool validation_is_due() const;
    bool save_is_due() const;
    double validate(Phase phase, const char* weights);
    std::optional<double> validate_unless_stopped(Phase phase, const char* weights);
    bool validate_at_the_end();
    void save();

    Setup& setup_;
    const Options& options_;
    const Plan& plan_;
    RunResults results_;
    int64_t step_ = 0;
    std::optional<int64_t> first_metrics_step_;  // of a metrics file that is there already
    bool branched_ = false;                      // off another run, just now
};

}  // namespace train_qat
