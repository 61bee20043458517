// The checkpoints in the output directory of a run: their names, which of them are whole, removing them.
//
//   OUTPUT/step_00001234                  a checkpoint
//          .step_00001234.partial-PID     one that process PID is writing or removing
//          .step_00001234.replaced-PID    one that makes way for a new one of the same step
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/ranks/communicator.h"

namespace train_qat {

// "step_00001234", and back: -1 if `name` is no such name.
std::string checkpoint_name(int64_t step);
int64_t step_of_checkpoint_name(const std::string& name);

// Whether `path` is a checkpoint: a directory (no link to one) with a valid manifest, whose step is in the
// directory's name, and all files there and of the right size.
bool is_checkpoint(const std::string& path);

struct CheckpointEntry {
    int64_t step = 0;
    std::string path;
};

// The checkpoints of a run in ascending order. `passed_over` receives a line for every step_######## that is
// none: a caller that resumes should print them.
std::vector<CheckpointEntry> list_checkpoints(const std::string& output_directory,
                                              std::vector<std::string>* passed_over = nullptr);

// All that have a checkpoint's name, damaged ones too, in ascending order.
std::vector<CheckpointEntry> list_checkpoint_names(const std::string& output_directory);

// The one with the highest step.
std::optional<std::string> find_latest_checkpoint(const std::string& output_directory,
                                                  std::vector<std::string>* passed_over = nullptr);

// What rank 0 finds, on all ranks: they resume from the same one. `passed_over` is filled on rank 0 only.
std::optional<std::string> find_latest_checkpoint(const std::string& output_directory,
                                                  Communicator& communicator,
                                                  std::vector<std::string>* passed_over = nullptr);

// Removes all checkpoints (as listed above, nothing else) but the newest `keep` and those whose step is in
// `protected_steps`. keep = 0 keeps all. Returns the removed paths.
std::vector<std::string> prune_checkpoints(const std::string& output_directory, int64_t keep,
                                           std::span<const int64_t> protected_steps = {});

// Removes all checkpoints of a run, damaged ones too, and nothing else.
void remove_checkpoints(const std::string& output_directory);

// ---- for the writer of checkpoints

// ".step_00001234.ROLE-PID" of this process; role: "partial" or "replaced".
std::string hidden_checkpoint_name(int64_t step, const char* role);

// Removes the hidden directories of processes that are gone, and gives an old checkpoint its name back where
// no new one took its place. locked: this process holds the lock of the directory (output_lock.h), so that
// every other is gone, also where its number is now another's; then files cut off in their writing go too.
void clean_up_after_dead_runs(const std::string& output_directory, bool locked = false);

void rename_or_throw(const std::string& from, const std::string& to);

}  // namespace train_qat
