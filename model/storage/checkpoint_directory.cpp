#include "model/storage/checkpoint_directory.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/storage/files.h"
#include "model/storage/manifest.h"

namespace train_qat {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> paths_in(const std::string& directory) {
    std::vector<fs::path> paths;
    if (!fs::exists(directory)) return paths;
    for (const auto& entry : fs::directory_iterator(directory)) paths.push_back(entry.path());
    return paths;
}

// A link to a directory is not ours to remove.
bool is_plain_directory(const fs::path& path) {
    std::error_code ignored;
    return fs::is_directory(fs::symlink_status(path, ignored));
}

// "" for a checkpoint.
std::string reason_not_valid(const std::string& directory) {
    try {
        const Manifest manifest = read_manifest(directory);
        check_file_sizes(directory, manifest);
        const std::string name = checkpoint_name(manifest.step);
        if (fs::path(directory).filename() != name)
            throw_file_error(manifest_path(directory),
                             "is the manifest of " + name + "; the directory was renamed");
        return "";
    } catch (const std::runtime_error& error) {
        return error.what();
    }
}

// Under a hidden name first: a run killed in between leaves no half checkpoint.
void remove_checkpoint(const std::string& output_directory, const CheckpointEntry& entry) {
    const std::string hidden = output_directory + "/" + hidden_checkpoint_name(entry.step, "partial");
    rename_or_throw(entry.path, hidden);
    std::error_code error;
    fs::remove_all(hidden, error);
    if (error) throw_file_error(hidden, "cannot remove: " + error.message());
}

struct HiddenName {
    std::string checkpoint;  // step_00001234
    bool replaced = false;
    bool alive = false;  // another process is at work on it
};

std::optional<HiddenName> parse_hidden_name(const std::string& name) {
    if (name.empty() || name[0] != '.') return std::nullopt;
    const size_t dot = name.find('.', 1);
    const size_t dash = name.find('-', 1);
    if (dot == std::string::npos || dash == std::string::npos || dash < dot) return std::nullopt;
    const std::string role = name.substr(dot + 1, dash - dot - 1);
    HiddenName hidden{name.substr(1, dot - 1), role == "replaced", false};
    if (!hidden.replaced && role != "partial") return std::nullopt;
    if (step_of_checkpoint_name(hidden.checkpoint) < 0) return std::nullopt;
    pid_t process = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + dash + 1, end, process);
    if (parsed.ec != std::errc() || parsed.ptr != end || process <= 0) return std::nullopt;
    hidden.alive = process != ::getpid() && (::kill(process, 0) == 0 || errno == EPERM);
    return hidden;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
    char text[32];
    std::snprintf(text, sizeof text, "step_%08lld", static_cast<long long>(step));
    return text;
}

int64_t step_of_checkpoint_name(const std::string& name) {
    constexpr size_t prefix = 5;
    int64_t step = -1;
    if (name.size() <= prefix) return -1;
    std::from_chars(name.data() + prefix, name.data() + name.size(), step);
    return step >= 0 && checkpoint_name(step) == name ? step : -1;
}

bool is_checkpoint(const std::string& path) {
    return is_plain_directory(path) && reason_not_valid(path).empty();
}

std::vector<CheckpointEntry> list_checkpoint_names(const std::string& output_directory) {
    std::vector<CheckpointEntry> entries;
    for (const fs::path& path : paths_in(output_directory)) {
        const int64_t step = step_of_checkpoint_name(path.filename().string());
        if (step >= 0 && is_plain_directory(path)) entries.push_back({step, path.string()});
    }
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
    return entries;
}

std::vector<CheckpointEntry> list_checkpoints(const std::string& output_directory,
                                              std::vector<std::string>* passed_over) {
    std::vector<CheckpointEntry> entries = list_checkpoint_names(output_directory);
    std::erase_if(entries, [&](const CheckpointEntry& entry) {
        const std::string reason = reason_not_valid(entry.path);
        if (!reason.empty() && passed_over != nullptr) passed_over->push_back(reason);
        return !reason.empty();
    });
    return entries;
}

std::optional<std::string> find_latest_checkpoint(const std::string& output_directory,
                                                  std::vector<std::string>* passed_over) {
    const auto entries = list_checkpoints(output_directory, passed_over);
    if (entries.empty()) return std::nullopt;
    return entries.back().path;
}

std::optional<std::string> find_latest_checkpoint(const std::string& output_directory,
                                                  Communicator& communicator,
                                                  std::vector<std::string>* passed_over) {
    std::string name;
    run_on_rank_0(communicator, [&] {
        if (const auto latest = find_latest_checkpoint(output_directory, passed_over))
            name = fs::path(*latest).filename().string();
    });
    name = text_of_rank_0(communicator, name);
    if (name.empty()) return std::nullopt;
    return (fs::path(output_directory) / name).string();
}

std::vector<std::string> prune_checkpoints(const std::string& output_directory, int64_t keep,
                                           std::span<const int64_t> protected_steps) {
    std::vector<std::string> removed;
    if (keep <= 0) return removed;
    const auto entries = list_checkpoints(output_directory);
    for (size_t i = 0; i + static_cast<size_t>(keep) < entries.size(); ++i) {
        if (std::count(protected_steps.begin(), protected_steps.end(), entries[i].step) > 0) continue;
        remove_checkpoint(output_directory, entries[i]);
        removed.push_back(entries[i].path);
    }
    return removed;
}

void remove_checkpoints(const std::string& output_directory) {
    for (const CheckpointEntry& entry : list_checkpoint_names(output_directory))
        remove_checkpoint(output_directory, entry);
}

std::string hidden_checkpoint_name(int64_t step, const char* role) {
    return "." + checkpoint_name(step) + "." + role + "-" + std::to_string(::getpid());
}

void clean_up_after_dead_runs(const std::string& output_directory, bool locked) {
    if (locked)
        for (const char* file : {"run.json.partial", "metrics.jsonl.partial"})
            ::unlink((output_directory + "/" + file).c_str());
    for (const fs::path& path : paths_in(output_directory)) {
        const auto hidden = parse_hidden_name(path.filename().string());
        if (!hidden || (hidden->alive && !locked) || !is_plain_directory(path)) continue;
        const fs::path place = fs::path(output_directory) / hidden->checkpoint;
        // Killed after the old checkpoint was moved away and before the new one was moved in.
        if (hidden->replaced && !fs::exists(place)) {
            rename_or_throw(path.string(), place.string());
        } else {
            fs::remove_all(path);
        }
    }
}

void rename_or_throw(const std::string& from, const std::string& to) {
    std::error_code error;
    fs::rename(from, to, error);
    if (error) throw_file_error(from, "cannot rename to " + to + ": " + error.message());
}

}  // namespace train_qat
