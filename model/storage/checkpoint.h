// Checkpoints: everything a run needs to go on bit by bit as if it had never stopped.
//
//   OUTPUT/step_00001234/model.safetensors       master weights under Hugging Face names, and their scales
//                        optimizer.safetensors   first and second moments
//                        manifest.json           step, the caller's state, sizes and checksums (manifest.h)
//
// A checkpoint is written into a hidden directory beside its place (.step_00001234.partial-PID), flushed to
// the disk and renamed: under its name it is always whole. A save that fails removes what it wrote and leaves
// everything else as it was. What a killed run left behind is cleaned up by the next save.
//
// All ranks save together, each writing its own rows of the two files. What is in the directory does not
// depend on the number of ranks, and any number of ranks can read it. Directories and the manifest are rank
// 0's business. Everything here is collective, with the same paths on one file system, and throws the same
// std::runtime_error on all ranks (kernels/ranks/agreement.h).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/storage/checkpoint_directory.h"
#include "model/storage/manifest.h"
#include "model/storage/named_tensor.h"

namespace train_qat {

inline constexpr const char* checkpoint_model_file = "model.safetensors";
inline constexpr const char* checkpoint_optimizer_file = "optimizer.safetensors";

struct CheckpointContents {
    int64_t step = 0;  // optimizer steps done
    std::vector<NamedTensor> model;
    std::vector<NamedTensor> optimizer;  // may be empty
    // Configuration, plan, loader position, random numbers, ...; that of rank 0 is saved.
    nlohmann::json state = nlohmann::json::object();
};

// Writes OUTPUT/step_######## and returns its path. Creates OUTPUT if need be. Throws std::runtime_error
//  * if there is too little disk space: before anything is written,
//  * if the step exists, unless `replace_existing`: for a run that was resumed before this step and so
//    arrives at it a second time. The old one makes way only when the new one is whole. A directory in the
//    way that is no valid checkpoint is then kept as step_########.unreadable-PID, with a warning on the
//    standard error output.
std::string save_checkpoint(const std::string& output_directory, Backend& backend, Communicator& communicator,
                            const CheckpointContents& contents, bool replace_existing = false);

class CheckpointReader {
  public:
    // A checkpoint, or the output directory of a run: then its latest. Reads the manifest, compares sizes.
    // Each rank reads the manifest; rank 0 decides which checkpoint of a run it is, and has passed_over().
    CheckpointReader(const std::string& path, Communicator& communicator);

    const std::string& path() const { return path_; }
    int64_t step() const { return manifest_.step; }
    const nlohmann::json& state() const { return manifest_.state; }
    // Why later directories of the run were not taken: one line each, empty as a rule.
    const std::vector<std::string>& passed_over() const { return passed_over_; }

    // Fill exactly the tensors of the file: a missing or additional name, another shape or dtype, or damaged
    // bytes (by the manifest's checksums) throw std::runtime_error. Only damage is noticed after tensors have
    // been overwritten. If tensors are divided (named_tensor.h), each rank reads its own rows only, and
    // damage anywhere is noticed by all.
    void load_model(Backend& backend, Communicator& communicator, std::span<const NamedTensor> tensors) const;
    void load_optimizer(Backend& backend, Communicator& communicator,
                        std::span<const NamedTensor> tensors) const;

  private:
    void open(const std::string& path);
    void load(const char* file, Backend& backend, Communicator& communicator,
              std::span<const NamedTensor> tensors) const;

    std::string path_;
    std::vector<std::string> passed_over_;
    Manifest manifest_;
};

}  // namespace train_qat
