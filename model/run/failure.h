// From the command line to the exit code: options, the rank's place in its job, and errors that other ranks
// must hear of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/run/job.h"
#include "model/run/options.h"

namespace train_qat {

// What the program does on this rank; returns its exit code.
using Program = std::function<int(const std::vector<std::string>& arguments, const Options&, World&)>;

// Runs it and returns the exit code: its own, 0 when only help was asked for, 2 for a mistake of the user and
// 1 for one of ours, with one line on the standard error output. Where all ranks fail alike, rank 0 says it.
int run_program(const std::vector<std::string>& arguments, const Program& program);

// Calls `function`, which works together with other ranks. If this rank fails alone, it says so and ends the
// whole job at once: before the communicator that the others wait at is taken apart.
void end_job_on_failure(World& world, const std::function<void()>& function);

}  // namespace train_qat
