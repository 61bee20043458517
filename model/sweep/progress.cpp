#include "model/sweep/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/run/metrics.h"
#include "model/units.h"

namespace train_qat {
namespace {

using Json = nlohmann::ordered_json;

std::string progress_path(const std::string& queue_directory, const SweepJob& job) {
    return queue_directory + "/" + job.id + ".progress";
}

double number_at(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_number() ? json[key].get<double>()
                                                       : std::numeric_limits<double>::quiet_NaN();
}

double flops_per_step(const SweepPlan& plan, const SweepJob& job) {
    const SweepRunPlan& run = plan.runs[job.plan_of];
    return static_cast<double>(run.plan.tokens_per_step) * run.flops_per_token;
}

bool has_rate(const std::optional<JobProgress>& progress) {
    return progress && progress->tokens_per_second > 0 && std::isfinite(progress->tokens_per_second);
}

// FLOPs of a job that are done.
double done_flops(const SweepPlan& plan, const SweepJob& job, const JobView& view) {
    if (view.status.state == JobState::done) return job.cost;
    if (view.status.state != JobState::running || !view.progress) return 0;
    const int64_t step = std::clamp(view.progress->step, job.first_step, job.end_step);
    return static_cast<double>(step - job.first_step) * flops_per_step(plan, job);
}

size_t count(const std::vector<JobView>& jobs, JobState state) {
    return static_cast<size_t>(std::count_if(jobs.begin(), jobs.end(),
                                             [&](const JobView& job) { return job.status.state == state; }));
}

std::string cut(const std::string& text, size_t length) {
    return text.size() <= length ? text : text.substr(0, length - 3) + "...";
}

std::string summary_line(const std::vector<JobView>& jobs, const SweepEstimate& known) {
    constexpr int width = 20;
    // Not 100% before all is done.
    const double share = known.total > 0 ? std::clamp(known.done / known.total, 0.0, 1.0) : 1.0;
    const double percent = std::floor(1000 * share) / 10;
    const auto filled = static_cast<size_t>(share * width);
    std::string line = "sweep [" + std::string(filled, '#') + std::string(width - filled, '-') +
                       formatted("] %5.1f%%  %zu done, %zu running, %zu failed, %zu waiting", percent,
                                 count(jobs, JobState::done), count(jobs, JobState::running),
                                 count(jobs, JobState::failed), count(jobs, JobState::waiting));
    if (known.seconds_left) line += "  ETA " + format_duration(*known.seconds_left);
    return line + "\n";
}

std::string running_line(const SweepPlan& plan, int index, const JobView& view) {
    const SweepJob& job = plan.jobs[index];
    std::string step = "-/" + std::to_string(job.end_step), loss = "-", rate = "-", left = "-";
    if (view.progress) {
        step = std::to_string(view.progress->step) + "/" + std::to_string(job.end_step);
        loss = formatted("%.4f", view.progress->loss);
    }
    if (has_rate(view.progress)) {
        rate = format_exact(std::llround(view.progress->tokens_per_second));
        const double tokens = static_cast<double>(std::max<int64_t>(0, job.end_step - view.progress->step)) *
                              static_cast<double>(plan.runs[job.plan_of].plan.tokens_per_step);
        left = format_duration(tokens / view.progress->tokens_per_second);
    }
    return formatted("  %-36s %-14s %17s %9s %12s %9s\n", cut(job_name(plan, index), 36).c_str(),
                     cut(view.status.worker, 14).c_str(), step.c_str(), loss.c_str(), rate.c_str(),
                     left.c_str());
}

// The first `limit` of the lines; the last one says how many are missing.
std::string first_lines(const std::vector<std::string>& lines, size_t limit) {
    std::string text;
    const size_t shown = lines.size() <= limit ? lines.size() : limit - 1;
    for (size_t i = 0; i < shown; ++i) text += lines[i];
    if (shown < lines.size()) text += "  ... and " + std::to_string(lines.size() - shown) + " more\n";
    return text;
}

}  // namespace

void write_progress(const std::string& queue_directory, const SweepJob& job, const JobProgress& progress) {
    const std::string path = progress_path(queue_directory, job), temporary = path + ".partial";
    const Json json = {
        {"step", progress.step}, {"loss", progress.loss}, {"tokens_per_second", progress.tokens_per_second}};
    {
        std::ofstream file(temporary, std::ios::trunc);
        file << json.dump() << "\n";
        file.close();
        if (!file) return;
    }
    static_cast<void>(std::rename(temporary.c_str(), path.c_str()));
}

std::optional<JobProgress> read_progress(const std::string& queue_directory, const SweepJob& job) {
    const std::string path = progress_path(queue_directory, job);
    if (!std::filesystem::is_regular_file(path)) return std::nullopt;
    std::ifstream file(path);
    const Json json = Json::parse(file, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return std::nullopt;
    return JobProgress{json["step"].get<int64_t>(), number_at(json, "loss"),
                       number_at(json, "tokens_per_second")};
}

std::vector<JobView> view_of(const SweepQueue& queue) {
    std::vector<JobView> views;
    for (JobStatus& status : queue.status()) {
        JobView view{std::move(status), std::nullopt};
        if (view.status.state == JobState::running)
            view.progress = read_progress(queue.directory(), queue.plan().jobs[views.size()]);
        views.push_back(std::move(view));
    }
    return views;
}

SweepEstimate estimate(const SweepPlan& plan, const std::vector<JobView>& jobs) {
    if (jobs.size() != plan.jobs.size()) throw std::logic_error("estimate: views are not those of the plan");
    SweepEstimate known;
    std::vector<double> chain(jobs.size(), 0);  // longest below, then with its own
    for (size_t i = jobs.size(); i-- > 0;) {
        const SweepJob& job = plan.jobs[i];
        const JobState state = jobs[i].status.state;
        if (state == JobState::unneeded) continue;
        const double done = done_flops(plan, job, jobs[i]);
        const double left = state == JobState::failed ? 0 : job.cost - done;
        known.total += job.cost;
        known.done += done;
        known.remaining += left;
        chain[i] += left;
        double& above = job.parent < 0 ? known.longest : chain[job.parent];
        above = std::max(above, chain[i]);
        if (state != JobState::running || !has_rate(jobs[i].progress)) continue;
        known.rate += jobs[i].progress->tokens_per_second * plan.runs[job.plan_of].flops_per_token;
        ++known.workers;
    }
    if (known.workers > 0)
        known.seconds_left =
            std::max(known.remaining / known.rate, known.longest * known.workers / known.rate);
    return known;
}

std::string format_progress(const SweepPlan& plan, const std::vector<JobView>& jobs, int lines) {
    if (lines < 6) throw std::logic_error("format_progress: needs room for 6 lines");
    std::vector<std::string> running, failed;
    for (size_t i = 0; i < jobs.size(); ++i) {
        const int index = static_cast<int>(i);
        const bool root_of_failure =
            plan.jobs[i].parent < 0 || jobs[plan.jobs[i].parent].status.state != JobState::failed;
        if (jobs[i].status.state == JobState::running) running.push_back(running_line(plan, index, jobs[i]));
        if (jobs[i].status.state == JobState::failed && root_of_failure)
            failed.push_back("  failed: " + job_name(plan, index) + " (" + cut(jobs[i].status.reason, 70) +
                             ")\n");
    }
    constexpr size_t most_failures = 3;
    const size_t room = static_cast<size_t>(lines) - 2 - std::min(failed.size(), most_failures);
    std::string text = summary_line(jobs, estimate(plan, jobs));
    if (!running.empty())
        text +=
            formatted("  %-36s %-14s %17s %9s %12s %9s\n", "job", "worker", "step", "loss", "tok/s", "ETA");
    return text + first_lines(running, room) + first_lines(failed, most_failures);
}

}  // namespace train_qat
