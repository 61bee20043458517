#include "model/run/log.h"

namespace train_qat {

RunLog::RunLog(const std::string& output_directory, const RunSettings& settings, const Plan& plan,
               const std::string& device, bool active)
    : output_directory_(output_directory),
      settings_(settings),
      plan_(plan),
      device_(device),
      active_(active) {}

void RunLog::begin(std::ostream& console, std::optional<int64_t> first_step, int64_t print_every,
                   double flops_per_token, const PeakFlops& peak) {
    if (!active_) return;
    peak_ = peak;
    console << peak_line(peak) << std::endl;
    metrics_ = std::make_unique<MetricsWriter>(output_directory_, first_step);
    progress_ = std::make_unique<ConsoleProgress>(console, plan_.total_steps, print_every, flops_per_token,
                                                  peak.per_second);
    write_record({});
}

void RunLog::open_event_file(std::optional<int64_t> first_step) {
    if (active_) events_ = std::make_unique<EventFile>(output_directory_, first_step);
}

void RunLog::step(Phase phase, int64_t step, double loss, double norm, double learning_rate, double seconds) {
    if (!active_) return;
    PhaseTime& time = phase == Phase::full_precision ? fp_time_ : qat_time_;
    time.add(plan_.tokens_per_step, seconds);
    const double tokens_per_second = static_cast<double>(plan_.tokens_per_step) / seconds;
    metrics_->write({{"step", step},
                     {"phase", to_string(phase)},
                     {"loss", loss},
                     {"learning_rate", learning_rate},
                     {"gradient_norm", norm},
                     {"tokens_per_second", tokens_per_second}});
    if (events_)
        events_->write(step, {{"train/loss", loss},
                              {"train/learning_rate", learning_rate},
                              {"train/gradient_norm", norm},
                              {"train/tokens_per_second", tokens_per_second}});
    progress_->step({step, to_string(phase), loss, learning_rate, norm, plan_.tokens_per_step, seconds});
}

void RunLog::validation(Phase phase, int64_t step, const char* weights, double loss, int64_t tokens,
                        double seconds) {
    if (!active_) return;
    metrics_->write(
        {{"step", step}, {"phase", to_string(phase)}, {"validation_loss", loss}, {"weights", weights}});
    if (events_) events_->write(step, {{(std::string("validation/") + weights).c_str(), loss}});
    progress_->validation(step, std::string(to_string(phase)) + " " + weights, loss, tokens, seconds);
}

void RunLog::sync() {
    if (active_) metrics_->sync();
}

double RunLog::tokens_per_second() const {
    return active_ ? progress_->throughput().tokens_per_second() : 0;
}

void RunLog::end(RunResults& results, std::ostream& console) {
    if (!active_) return;
    results.fp_tokens_per_second = fp_time_.tokens_per_second();
    results.qat_tokens_per_second = qat_time_.tokens_per_second();
    write_record(results);
    console << "\n" << results_table(results, plan_) << std::flush;
}

void RunLog::write_record(const RunResults& results) const {
    write_run_json(output_directory_ + "/run.json", run_record(settings_, plan_, results, device_, peak_));
}

}  // namespace train_qat
