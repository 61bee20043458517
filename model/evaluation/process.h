// Another program, run to its end without a shell.
#pragma once

#include <string>
#include <vector>

namespace train_qat {

struct ProcessResult {
    int exit_code = 0;   // 128 + the signal that ended it
    std::string errors;  // what it wrote to stderr
};

// command: the program, found in PATH unless it is a path, and its arguments. What it prints goes where this process prints;
// it gets a TERM when this process is asked to stop (model/job/stop_signal.h).
// std::runtime_error that names the program where it can't be started.
ProcessResult run_process(const std::vector<std::string>& command);

}  // namespace train_qat
