#include "model/sweep/queue.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <unordered_set>

#include "model/storage/manifest.h"
#include "model/storage/output_lock.h"
#include "model/units.h"

namespace train_qat {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void create_directory(const std::string& directory) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) throw_file_error(directory, "cannot create directory: " + error.message());
}

void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
        throw_file_error(path, std::string("cannot remove: ") + std::strerror(errno));
}

// False: it exists already.
bool create_exclusively(const std::string& path, const std::string& text) {
    const FileDescriptor descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (descriptor.get() < 0) {
        if (errno == EEXIST) return false;
        throw_file_error(path, std::string("cannot create: ") + std::strerror(errno));
    }
    try {
        write_all(descriptor.get(), path, text.data(), static_cast<int64_t>(text.size()));
    } catch (...) {
        ::unlink(path.c_str());
        throw;
    }
    return true;
}

std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    std::error_code error;
    std::filesystem::directory_iterator entry(directory, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
        names.push_back(entry->path().filename().string());
    if (error) throw_file_error(directory, "cannot list: " + error.message());
    return names;
}

// Empty for a file that is gone or being written: what it says is for people only.
Json read_json(const std::string& path) {
    try {
        const Json json = Json::parse(read_text_file(path), nullptr, false);
        return json.is_object() ? json : Json::object();
    } catch (const std::runtime_error&) {
        return Json::object();
    }
}

std::string text_at(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
}

}  // namespace

// ---- queue

SweepQueue::SweepQueue(const std::string& output_directory, const SweepPlan& plan)
    : directory_(output_directory + "/queue"), plan_(plan), by_priority_(plan.jobs.size()) {
    create_directory(directory_);
    std::iota(by_priority_.begin(), by_priority_.end(), 0);
    std::stable_sort(by_priority_.begin(), by_priority_.end(),
                     [&](int a, int b) { return plan_.jobs[a].path_cost > plan_.jobs[b].path_cost; });
}

std::string SweepQueue::file(int job, const char* kind) const {
    return directory_ + "/" + plan_.jobs.at(job).id + kind;
}

void SweepQueue::clear_claims(bool retry_failed) const {
    for (const std::string& name : names_in(directory_)) {
        const std::string kind = std::filesystem::path(name).extension().string();
        if (kind == ".claim" || kind == ".progress" || kind == ".partial" ||
            (kind == ".failed" && retry_failed))
            remove_file(directory_ + "/" + name);
    }
    remove_file(stop_path());
    sync_directory(directory_);
}

std::vector<JobStatus> SweepQueue::status(bool details) const {
    const std::vector<std::string> names = names_in(directory_);
    const std::unordered_set<std::string> present(names.begin(), names.end());
    std::vector<JobStatus> all(plan_.jobs.size());
    for (size_t job = 0; job < all.size(); ++job) {
        const SweepJob& planned = plan_.jobs[job];
        JobStatus& status = all[job];
        if (present.contains(planned.id + ".done"))
            status.state = JobState::done;
        else if (present.contains(planned.id + ".failed") ||
                 (planned.parent >= 0 && all[planned.parent].state == JobState::failed))
            status.state = JobState::failed;
        else if (present.contains(planned.id + ".claim"))
            status.state = JobState::running;
    }
    std::vector<bool> needed(all.size(), false);
    for (size_t job = all.size(); job-- > 0;) {
        const SweepJob& planned = plan_.jobs[job];
        JobStatus& status = all[job];
        if (planned.run < 0 && status.state == JobState::waiting && !needed[job])
            status.state = JobState::unneeded;
        const bool open = status.state == JobState::waiting || status.state == JobState::running;
        if (open && planned.parent >= 0) needed[planned.parent] = true;
        if (!details) continue;
        const int index = static_cast<int>(job);
        if (status.state == JobState::running)
            status.worker = text_at(read_json(file(index, ".claim")), "worker");
        if (status.state == JobState::failed)
            status.reason = text_at(read_json(file(index, ".failed")), "reason");
        if (status.state != JobState::done || planned.run < 0) continue;
        const Json record = read_json(file(index, ".done"));
        if (record.contains("validation_loss") && record["validation_loss"].is_number())
            status.validation_loss = record["validation_loss"].get<double>();
    }
    return all;
}

bool SweepQueue::ready(const std::vector<JobStatus>& jobs, size_t job) const {
    const int parent = plan_.jobs[job].parent;
    return jobs[job].state == JobState::waiting && (parent < 0 || jobs[parent].state == JobState::done);
}

std::optional<int> SweepQueue::claim(const std::string& worker) const {
    const std::vector<JobStatus> jobs = status(false);
    for (const int job : by_priority_) {
        if (!ready(jobs, static_cast<size_t>(job))) continue;
        Json claim = process_signature(worker);
        claim["job"] = job_name(plan_, job);
        if (create_exclusively(file(job, ".claim"), text_of(claim))) return job;
    }
    return std::nullopt;
}

void SweepQueue::release(int job) const {
    remove_file(file(job, ".claim"));
}

void SweepQueue::request_stop(const std::string& reason) const {
    Json request = process_signature("stop");
    if (!reason.empty()) request["reason"] = reason;
    create_exclusively(stop_path(), text_of(request));
}

std::string SweepQueue::stop_reason() const {
    return text_at(read_json(stop_path()), "reason");
}

bool SweepQueue::stop_requested() const {
    return std::filesystem::exists(stop_path());
}

bool SweepQueue::finished() const {
    const std::vector<JobStatus> jobs = status(false);
    return std::none_of(jobs.begin(), jobs.end(), [](const JobStatus& job) {
        return job.state == JobState::waiting || job.state == JobState::running;
    });
}

void SweepQueue::done(int job, std::optional<double> validation_loss) const {
    Json record = {{"job", job_name(plan_, job)}, {"time", utc_time()}};
    if (validation_loss) record["validation_loss"] = *validation_loss;
    write_file_atomically(file(job, ".done"), text_of(record));
}

std::vector<SweepQueue::FailedRun> SweepQueue::failed(int job, const std::string& reason) const {
    const std::vector<JobStatus> before = status(false);
    const std::string of_descendants = "its trunk (" + job_name(plan_, job) + ") failed: " + one_line(reason);
    std::vector<bool> fails(plan_.jobs.size(), false);
    std::vector<FailedRun> runs;
    fails.at(job) = true;
    for (size_t i = job; i < plan_.jobs.size(); ++i) {
        const SweepJob& planned = plan_.jobs[i];
        const int index = static_cast<int>(i);
        if (planned.parent >= 0 && fails[planned.parent] && before[i].state != JobState::done)
            fails[i] = true;
        if (!fails[i]) continue;
        const std::string why = index == job ? one_line(reason) : of_descendants;
        const Json record = {{"job", job_name(plan_, index)}, {"reason", why}, {"time", utc_time()}};
        write_file_atomically(file(index, ".failed"), text_of(record));
        if (planned.run >= 0) runs.push_back({planned.run, why});
    }
    return runs;
}

std::vector<int> SweepQueue::trunks_to_start_from(const std::function<bool(int job)>& starts) const {
    const std::vector<JobStatus> jobs = status(false);
    std::vector<int> trunks;
    for (size_t job = 0; job < jobs.size(); ++job) {
        const int parent = plan_.jobs[job].parent;
        if (parent < 0 || jobs[parent].state != JobState::done || jobs[job].state != JobState::waiting)
            continue;
        if (std::find(trunks.begin(), trunks.end(), parent) != trunks.end()) continue;
        if (starts(static_cast<int>(job))) trunks.push_back(parent);
    }
    return trunks;
}

void SweepQueue::forget_done(int job) const {
    remove_file(file(job, ".done"));
    sync_directory(directory_);
}

}  // namespace train_qat
