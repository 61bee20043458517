// From the command line to the exit code: errors that users read and that other ranks must hear of.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "kernels/ranks/agreement.h"
#include "model/job/job.h"
#include "model/job/options.h"

namespace train_qat {

// What the program does on this rank; returns its exit code.
using Program = std::function<int(const std::vector<std::string>& arguments, const Options&, Job&)>;

// Whether no launcher started other ranks beside this process, as far as can be known before anything is checked.
bool starts_alone();

// Runs it and returns the exit code: its own, 0 when only help was asked for, 2 for a mistake of the user and
// 1 for one of ours, with one line on the standard error output. Where all ranks fail alike, rank 0 says it. A standard output
// that cannot be written to is an error where nothing else comes of it: training leaves files and goes on.
int run_to_exit_code(const std::vector<std::string>& arguments, const Program& program);

// Inside a catch block: says the error and ends the whole job; of a job of one rank throws it again.
[[noreturn]] void end_job(const Job& job, const std::exception& error);

// Calls `function`, which works together with other ranks, and returns what it returns. If this rank fails
// alone, it says so and ends the whole job at once: before the communicator that the others wait at is taken
// apart.
template <typename Function>
auto end_job_on_failure(const Job& job, Function&& function) {
    try {
        return function();
    } catch (const JointError&) {
        throw;
    } catch (const std::exception& error) {
        end_job(job, error);
    }
}

}  // namespace train_qat
