// Reading checkpoints.
#include <filesystem>
#include <optional>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/storage/checkpoint.h"
#include "model/storage/checkpoint_directory.h"
#include "model/storage/checksum.h"
#include "model/storage/files.h"
#include "model/storage/safetensors.h"

namespace train_qat {

namespace fs = std::filesystem;

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
    load(checkpoint_model_file, backend, communicator, tensors);
}

void CheckpointReader::load_optimizer(Backend& backend, Communicator& communicator,
                                      std::span<const NamedTensor> tensors) const {
    load(checkpoint_optimizer_file, backend, communicator, tensors);
}

}  // namespace train_qat
