#include "model/run/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string_view>

#include "model/units.h"

namespace train_qat {
namespace {

nlohmann::json read_record(const std::string& path, std::string_view line, int64_t number) {
    auto record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"].is_number_integer()) return record;
    throw_file_error(
        path, "line " + std::to_string(number) +
                  " is no JSON object with an integer \"step\"; move the file away to resume without it");
}

// The whole lines of `text` whose records are to be kept, byte by byte.
template <typename Keep>
std::string kept_records(const std::string& path, const std::string& text, const Keep& keep) {
    std::string kept;
    int64_t number = 0;
    for (size_t begin = 0; begin < text.size();) {
        const size_t newline = text.find('\n', begin);
        if (newline == std::string::npos) break;  // cut off in the middle of a write
        const std::string_view line(text.data() + begin, newline - begin);
        if (keep(read_record(path, line, ++number))) kept.append(line).push_back('\n');
        begin = newline + 1;
    }
    return kept;
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& output_directory, std::optional<int64_t> resume_from_step)
    : path_(output_directory + "/metrics.jsonl") {
    std::error_code error;
    std::filesystem::create_directories(output_directory, error);
    if (error) throw_file_error(output_directory, "cannot create directory: " + error.message());
    if (std::filesystem::exists(path_)) {
        if (!resume_from_step) {
            throw_file_error(path_,
                             "exists already and is not overwritten; choose another output directory or "
                             "resume the run that wrote it");
        }
        const std::string text = read_text_file(path_);
        const std::string kept = kept_records(
            path_, text, [&](const nlohmann::json& record) { return record["step"] < *resume_from_step; });
        if (kept.size() != text.size()) write_file_atomically(path_, kept);
    }
    descriptor_ = std::make_unique<FileDescriptor>(
        ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666));
    if (descriptor_->get() < 0) throw_file_error(path_, std::string("cannot open: ") + std::strerror(errno));
    bytes_ = static_cast<int64_t>(std::filesystem::file_size(path_));
}

void MetricsWriter::write(const nlohmann::ordered_json& record) {
    if (!record.is_object() || !record.contains("step") || !record["step"].is_number_integer())
        throw std::logic_error("MetricsWriter: a record is a JSON object with an integer \"step\"");
    const std::string line = record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    try {
        write_all(descriptor_->get(), path_, line.data(), static_cast<int64_t>(line.size()));
    } catch (...) {
        // Half a record would spoil the next one. Truncating needs no space.
        if (::ftruncate(descriptor_->get(), bytes_) != 0) std::perror(path_.c_str());
        throw;
    }
    bytes_ += static_cast<int64_t>(line.size());
}

void MetricsWriter::sync() {
    if (::fsync(descriptor_->get()) != 0)
        throw_file_error(path_, std::string("cannot flush: ") + std::strerror(errno));
}

void copy_metrics(const std::string& from, int64_t step, const std::string& output_directory, bool replace) {
    std::error_code error;
    std::filesystem::create_directories(output_directory, error);
    if (error) throw_file_error(output_directory, "cannot create directory: " + error.message());
    const std::string path = output_directory + "/metrics.jsonl";
    if (!replace && std::filesystem::exists(path))
        throw_file_error(path, "exists already and is not overwritten; choose another output directory");
    const auto shared = [step](const nlohmann::json& record) {
        return record["step"] < step || (record["step"] == step && !record.contains("validation_loss"));
    };
    write_file_atomically(path, kept_records(from, read_text_file(from), shared));
}

void write_run_json(const std::string& path, const nlohmann::ordered_json& value) {
    write_file_atomically(path, value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

// ---- console

namespace {

// Columns stay aligned over a run: the step as wide as the total, the phase as wide as "QAT".
std::string line_start(int64_t step, int64_t total_steps, const std::string& phase) {
    const std::string total = std::to_string(total_steps);
    return formatted("step %*lld/%s  %-3s", static_cast<int>(total.size()), static_cast<long long>(step),
                     total.c_str(), phase.c_str());
}

}  // namespace

std::string format_step_line(const StepLine& line) {
    std::string text = line_start(line.step, line.total_steps, line.phase);
    text += formatted("  loss %.4f  lr %.2e  norm %.3f", line.loss, line.learning_rate, line.gradient_norm);
    text += "  " + format_exact(std::llround(line.tokens_per_second)) + " tok/s";
    if (line.model_flops_utilization) text += formatted("  MFU %.1f%%", 100 * *line.model_flops_utilization);
    const double total = static_cast<double>(line.total_steps);
    text += formatted("  %.1f%% done", total > 0 ? 100 * static_cast<double>(line.step) / total : 100.0);
    if (line.seconds_left) text += "  ETA " + format_duration(*line.seconds_left);
    return text;
}

std::string format_validation_line(int64_t step, int64_t total_steps, const std::string& phase, double loss,
                                   int64_t tokens, double seconds) {
    return line_start(step, total_steps, phase) +
           formatted("  validation loss %.4f  perplexity %.2f  ", loss, std::exp(loss)) +
           format_exact(tokens) + " tokens in " + format_duration(seconds);
}

void ThroughputAverage::add(int64_t tokens, double seconds) {
    constexpr double decay = 0.95;  // a memory of about 20 steps
    if (steps_ == 1) weight_ = tokens_ = seconds_ = 0;
    weight_ = decay * weight_ + (1 - decay);
    tokens_ = decay * tokens_ + (1 - decay) * static_cast<double>(tokens);
    seconds_ = decay * seconds_ + (1 - decay) * seconds;
    ++steps_;
}

double ThroughputAverage::tokens_per_second() const {
    return seconds_ > 0 ? tokens_ / seconds_ : 0;
}

double ThroughputAverage::seconds_per_step() const {
    return weight_ > 0 ? seconds_ / weight_ : 0;
}

ConsoleProgress::ConsoleProgress(std::ostream& output, int64_t total_steps, int64_t print_every,
                                 double flops_per_token, double peak_flops)
    : output_(output),
      total_steps_(total_steps),
      print_every_(print_every),
      flops_per_token_(flops_per_token),
      peak_flops_(peak_flops) {
    if (print_every < 1) throw std::logic_error("ConsoleProgress: print_every must be at least 1");
}

std::optional<double> ConsoleProgress::model_flops_utilization() const {
    if (!(flops_per_token_ > 0) || !(peak_flops_ > 0)) return std::nullopt;
    return throughput_.tokens_per_second() * flops_per_token_ / peak_flops_;
}

void ConsoleProgress::step(const Step& step) {
    throughput_.add(step.tokens, step.seconds);
    const bool wanted = first_ || step.step % print_every_ == 0 || step.step == total_steps_;
    first_ = false;
    if (!wanted) return;
    StepLine line{step.step,
                  total_steps_,
                  step.phase,
                  step.loss,
                  step.learning_rate,
                  step.gradient_norm,
                  throughput_.tokens_per_second(),
                  model_flops_utilization(),
                  std::nullopt};
    if (step.step < total_steps_)
        line.seconds_left = static_cast<double>(total_steps_ - step.step) * throughput_.seconds_per_step();
    output_ << format_step_line(line) << std::endl;
}

void ConsoleProgress::validation(int64_t step, const std::string& phase, double loss, int64_t tokens,
                                 double seconds) {
    output_ << format_validation_line(step, total_steps_, phase, loss, tokens, seconds) << std::endl;
}

}  // namespace train_qat
