#include "model/storage/checkpoint.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <functional>
#include <iostream>
#include <stdexcept>

#include "kernels/ranks/agreement.h"

namespace train_qat {
namespace {

namespace fs = std::filesystem;

constexpr const char* model_file = "model.safetensors";
constexpr const char* optimizer_file = "optimizer.safetensors";
// Readers of the Hugging Face layout insist on this entry.
const std::map<std::string, std::string> metadata = {{"format", "pt"}};

bool is_plain_directory(const fs::path& path) {
    std::error_code ignored;
    return fs::is_directory(
        fs::symlink_status(path, ignored));  // a link to a directory is not ours to remove
}

void rename_or_throw(const std::string& from, const std::string& to) {
    std::error_code error;
    fs::rename(from, to, error);
    if (error) throw_file_error(from, "cannot rename to " + to + ": " + error.message());
}

// ---- hidden names

// .step_00001234.partial-PID is being written or removed; .step_00001234.replaced-PID makes way for a new
// one.
std::string hidden_name(int64_t step, const char* role) {
    return "." + checkpoint_name(step) + "." + role + "-" + std::to_string(::getpid());
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

void clean_up_after_dead_runs(const std::string& output_directory) {
    std::vector<fs::path> leftovers;
    for (const auto& entry : fs::directory_iterator(output_directory)) leftovers.push_back(entry.path());
    for (const auto& path : leftovers) {
        const auto hidden = parse_hidden_name(path.filename().string());
        if (!hidden || hidden->alive || !is_plain_directory(path)) continue;
        const fs::path place = fs::path(output_directory) / hidden->checkpoint;
        // Killed between the two renames of move_into_place: the old checkpoint goes back.
        if (hidden->replaced && !fs::exists(place)) {
            rename_or_throw(path.string(), place.string());
        } else {
            fs::remove_all(path);
        }
    }
}

// The directory that a checkpoint is written into. Removed at the end unless it was moved into its place.
class PartialDirectory {
  public:
    explicit PartialDirectory(const std::string& path) : path_(path) {
        if (!fs::create_directory(path)) throw_file_error(path, "exists already");
    }
    ~PartialDirectory() {
        std::error_code ignored;  // the next save tries again
        fs::remove_all(path_, ignored);
    }
    PartialDirectory(const PartialDirectory&) = delete;
    PartialDirectory& operator=(const PartialDirectory&) = delete;
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

// ---- saving

void check_free_space(const std::string& output_directory, const CheckpointContents& contents) {
    constexpr int64_t manifest_allowance = 1 << 20;
    const int64_t needed = safetensors_bytes(contents.model, metadata) +
                           safetensors_bytes(contents.optimizer, metadata) + manifest_allowance;
    const int64_t available = available_disk_bytes(output_directory);
    if (needed <= available) return;
    throw_file_error(output_directory, "not enough space for the checkpoint of step " +
                                           std::to_string(contents.step) + ": it needs " +
                                           format_bytes(needed) + ", " + format_bytes(available) +
                                           " are available; free some space or keep fewer checkpoints");
}

void write_manifest(const std::string& directory, const Manifest& manifest) {
    const std::string text = manifest_text(manifest);
    OutputFile file(manifest_path(directory), static_cast<int64_t>(text.size()));
    file.write(text.data(), static_cast<int64_t>(text.size()));
    file.finish();
}

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

// Frees the name of the checkpoint. Returns where the old one went, "" if there is nothing to bring back.
std::string make_way(const std::string& output_directory, int64_t step) {
    const std::string place = output_directory + "/" + checkpoint_name(step);
    if (!fs::exists(fs::symlink_status(place))) return "";
    if (is_plain_directory(place) && reason_not_valid(place).empty()) {
        const std::string aside = output_directory + "/" + hidden_name(step, "replaced");
        rename_or_throw(place, aside);
        return aside;
    }
    const std::string kept = place + ".unreadable-" + std::to_string(::getpid());
    if (fs::exists(fs::symlink_status(kept))) throw_file_error(kept, "exists already; move it away");
    rename_or_throw(place, kept);
    std::cerr << "train_qat: warning: " << place << " was no valid checkpoint and is now " << kept
              << std::endl;
    return "";
}

void move_into_place(const std::string& output_directory, int64_t step, const std::string& written) {
    const std::string place = output_directory + "/" + checkpoint_name(step);
    const std::string aside = make_way(output_directory, step);
    try {
        rename_or_throw(written, place);
    } catch (...) {
        if (!aside.empty()) rename_or_throw(aside, place);
        throw;
    }
    sync_directory(output_directory);
    std::error_code ignored;  // the checkpoint is saved; the next save tries again to remove the old one
    if (!aside.empty()) fs::remove_all(aside, ignored);
}

// `work`, with the errors of std::filesystem in our words.
void work_on_directories(const std::string& output_directory, int64_t step,
                         const std::function<void()>& work) {
    try {
        work();
    } catch (const fs::filesystem_error& error) {
        throw_file_error(output_directory, "cannot save the checkpoint of step " + std::to_string(step) +
                                               ": " + error.code().message() + " (" + error.path1().string() +
                                               ")");
    }
}

void refuse_existing(const std::string& place) {
    if (!fs::exists(fs::symlink_status(place))) return;
    const bool valid = is_plain_directory(place) && reason_not_valid(place).empty();
    throw_file_error(place,
                     valid ? "this checkpoint exists already and is not overwritten; choose another output "
                             "directory or resume the run that wrote it"
                           : "is in the way of a checkpoint and not a valid one itself; move it away or "
                             "choose another output directory");
}

}  // namespace

std::string save_checkpoint(const std::string& output_directory, Backend& backend, Communicator& communicator,
                            const CheckpointContents& contents, bool replace_existing) {
    if (contents.step < 0 || !contents.state.is_object())
        throw std::logic_error("save_checkpoint: needs a step >= 0 and a JSON object as state");
    const auto on_rank_0 = [&](const std::function<void()>& work) {
        run_on_rank_0(communicator, [&] { work_on_directories(output_directory, contents.step, work); });
    };
    const std::string place = output_directory + "/" + checkpoint_name(contents.step);
    std::optional<PartialDirectory> partial;  // on rank 0
    std::string hidden = hidden_name(contents.step, "partial");
    on_rank_0([&] {
        fs::create_directories(output_directory);
        clean_up_after_dead_runs(output_directory);
        if (!replace_existing) refuse_existing(place);
        check_free_space(output_directory, contents);
        partial.emplace(output_directory + "/" + hidden);
    });
    hidden = text_of_rank_0(communicator, hidden);  // it has the process id of rank 0

    Manifest manifest{contents.step, contents.state, {}};
    const std::string directory = output_directory + "/" + hidden;
    manifest.files[model_file] =
        write_safetensors(directory + "/" + model_file, backend, communicator, contents.model, metadata);
    manifest.files[optimizer_file] = write_safetensors(directory + "/" + optimizer_file, backend,
                                                       communicator, contents.optimizer, metadata);
    on_rank_0([&] {
        write_manifest(directory, manifest);
        sync_directory(directory);
        move_into_place(output_directory, contents.step, directory);
    });
    return place;
}

std::string save_checkpoint(const std::string& output_directory, Backend& backend,
                            const CheckpointContents& contents, bool replace_existing) {
    return save_checkpoint(output_directory, backend, *make_single_communicator(), contents,
                           replace_existing);
}

// ---- listing and pruning

std::vector<CheckpointEntry> list_checkpoints(const std::string& output_directory,
                                              std::vector<std::string>* passed_over) {
    std::vector<CheckpointEntry> entries;
    if (!fs::exists(output_directory)) return entries;
    for (const auto& entry : fs::directory_iterator(output_directory)) {
        const int64_t step = step_of_checkpoint_name(entry.path().filename().string());
        if (step >= 0 && is_plain_directory(entry.path())) entries.push_back({step, entry.path().string()});
    }
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
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
        const auto& [step, path] = entries[i];
        if (std::count(protected_steps.begin(), protected_steps.end(), step) > 0) continue;
        // Under a hidden name first: a run killed in between leaves no half checkpoint.
        const std::string hidden = output_directory + "/" + hidden_name(step, "partial");
        rename_or_throw(path, hidden);
        std::error_code error;
        fs::remove_all(hidden, error);
        if (error) throw_file_error(hidden, "cannot remove: " + error.message());
        removed.push_back(path);
    }
    return removed;
}

bool is_checkpoint(const std::string& path) {
    return is_plain_directory(path) && reason_not_valid(path).empty();
}

void remove_checkpoints(const std::string& output_directory) {
    if (!fs::exists(output_directory)) return;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(output_directory)) found.push_back(entry.path());
    for (const fs::path& path : found) {
        const int64_t step = step_of_checkpoint_name(path.filename().string());
        if (step < 0 || !is_plain_directory(path)) continue;
        const std::string hidden = output_directory + "/" + hidden_name(step, "partial");
        rename_or_throw(path.string(), hidden);
        fs::remove_all(hidden);
    }
}

// ---- reading

CheckpointReader::CheckpointReader(const std::string& path) {
    open(path);
}

CheckpointReader::CheckpointReader(const std::string& path, Communicator& communicator) {
    run_on_rank_0(communicator, [&] { open(path); });
    const bool of_run = path_ != path;
    const std::string name = text_of_rank_0(communicator, of_run ? fs::path(path_).filename().string() : "");
    run_together(communicator, [&] {
        if (communicator.rank() != 0) open(name.empty() ? path : (fs::path(path) / name).string());
    });
    const std::string of_rank_0 = text_of_rank_0(communicator, manifest_.checksum);
    run_together(communicator, [&] {
        if (manifest_.checksum == of_rank_0) return;
        throw_file_error(manifest_path(path_),
                         "is another one than rank 0 has read; all ranks must read from one file system");
    });
}

void CheckpointReader::open(const std::string& path) {
    path_ = path;
    if (!has_manifest(path)) {
        if (!fs::is_directory(path))
            throw_file_error(path, "no such directory; expected a checkpoint or a run's output");
        const auto latest = find_latest_checkpoint(path, &passed_over_);
        if (!latest) {
            throw_file_error(path,
                             passed_over_.empty()
                                 ? "holds no checkpoint (neither manifest.json nor step_######## directories)"
                                 : "holds no valid checkpoint: " + passed_over_.back());
        }
        path_ = *latest;
    }
    manifest_ = read_manifest(path_);
    check_file_sizes(path_, manifest_);
}

void CheckpointReader::verify() const {
    for (const auto& [name, summary] : manifest_.files)
        SafetensorsFile(path_ + "/" + name).verify_checksum(summary.checksum);
}

void CheckpointReader::load(const char* file, Backend& backend, Communicator& communicator,
                            std::span<const NamedTensor> tensors) const {
    std::optional<SafetensorsFile> source;
    uint64_t expected = 0;
    run_together(communicator, [&] {
        const auto summary = manifest_.files.find(file);
        if (summary == manifest_.files.end()) throw_file_error(path_, std::string("has no ") + file);
        expected = summary->second.checksum;
        source.emplace(path_ + "/" + file);
    });
    const uint64_t checksum = source->read_all(backend, communicator, tensors);
    run_together(communicator, [&] {
        if (checksum == expected) return;
        throw_file_error(source->path(), "damaged: its checksum is " + checksum_text(checksum) +
                                             ", the manifest says " + checksum_text(expected) +
                                             "; use another checkpoint");
    });
}

void CheckpointReader::load_model(Backend& backend, Communicator& communicator,
                                  std::span<const NamedTensor> tensors) const {
    load(model_file, backend, communicator, tensors);
}

void CheckpointReader::load_model(Backend& backend, std::span<const NamedTensor> tensors) const {
    load_model(backend, *make_single_communicator(), tensors);
}

void CheckpointReader::load_optimizer(Backend& backend, Communicator& communicator,
                                      std::span<const NamedTensor> tensors) const {
    load(optimizer_file, backend, communicator, tensors);
}

void CheckpointReader::load_optimizer(Backend& backend, std::span<const NamedTensor> tensors) const {
    load_optimizer(backend, *make_single_communicator(), tensors);
}

}  // namespace train_qat
