// One process at a time in an output directory.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "model/storage/files.h"

namespace train_qat {

// Who writes, and when: {"worker": ..., "host": ..., "process": ..., "time": ...}.
nlohmann::ordered_json process_signature(const std::string& worker);

// Held by one process for the life of a run or a sweep; the kernel releases it when the process ends, in
// whatever way. It is the lock (flock) of OUTPUT/.lock, which says who holds it and is removed at the end.
class OutputLock {
  public:
    // Creates the directory, and removes what killed processes have left in it. worker: what holds it, "run" or "sweep". Throws std::runtime_error that begins
    // with -o and says who is at work in it when another process is; nothing is changed then. On a file
    // system without locks there is a warning on standard error, and is_held() is false.
    OutputLock(const std::string& output_directory, const std::string& worker);

    // Removes its file, and directories that it has created when nothing was written into them.
    ~OutputLock();
    OutputLock(const OutputLock&) = delete;
    OutputLock& operator=(const OutputLock&) = delete;

    bool is_held() const { return held_; }

  private:
    int open_lock_file();
    bool take();
    bool is_file_of_path() const;

    const std::string directory_, path_;
    std::string first_created_;  // of the directories; empty: all were there
    int descriptor_ = -1;
    bool created_ = false;  // the file, by this process
    bool held_ = false;
};

}  // namespace train_qat
