// Saving checkpoints.
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/storage/checkpoint.h"
#include "model/storage/checkpoint_directory.h"
#include "model/storage/files.h"
#include "model/storage/safetensors.h"
#include "model/units.h"

namespace train_qat {
namespace {

namespace fs = std::filesystem;

// Readers of the Hugging Face layout insist on this entry.
const std::map<std::string, std::string> metadata = {{"format", "pt"}};

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

  private:
    std::string path_;
};

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

// Frees the name of the checkpoint. Returns where the old one went, "" if there is nothing to bring back.
std::string make_way(const std::string& output_directory, int64_t step) {
    const std::string place = output_directory + "/" + checkpoint_name(step);
    if (!fs::exists(fs::symlink_status(place))) return "";
    if (is_checkpoint(place)) {
        const std::string aside = output_directory + "/" + hidden_checkpoint_name(step, "replaced");
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
    throw_file_error(place,
                     is_checkpoint(place)
                         ? "this checkpoint exists already and is not overwritten; choose another output "
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
    std::string hidden = hidden_checkpoint_name(contents.step, "partial");
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
    manifest.files[checkpoint_model_file] = write_safetensors(
        directory + "/" + checkpoint_model_file, backend, communicator, contents.model, metadata);
    manifest.files[checkpoint_optimizer_file] = write_safetensors(
        directory + "/" + checkpoint_optimizer_file, backend, communicator, contents.optimizer, metadata);
    on_rank_0([&] {
        write_manifest(directory, manifest);
        sync_directory(directory);
        move_into_place(output_directory, contents.step, directory);
    });
    return place;
}

}  // namespace train_qat
