#include "model/job/failure.h"

#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>

#include "kernels/ranks/launch.h"

namespace train_qat {

namespace {

constexpr int internal_error = 1, user_error = 2;

// Says what went wrong, in one write so that lines of several ranks stay whole. Returns the exit code.
int report(const std::exception& error, const std::string& where) {
    const bool internal = dynamic_cast<const std::logic_error*>(&error) != nullptr;
    std::cerr << (std::string("train_qat: ") + (internal ? "internal error: " : "error: ") + where +
                  error.what() + "\n")
              << std::flush;
    return internal ? internal_error : user_error;
}

}  // namespace

int rank_of_launch() {
    try {
        return find_launch().rank;
    } catch (const std::runtime_error&) {
        return 0;  // it shows again where it matters
    }
}

int run_to_exit_code(const std::vector<std::string>& arguments, const Program& program) {
    // All ranks have the same command line.
    const bool first = rank_of_launch() == 0;
    std::ostream nowhere(nullptr);
    std::optional<Options> options;
    try {
        options = parse_command_line(arguments, first ? std::cout : nowhere);
    } catch (const std::runtime_error& error) {
        return first ? report(error, "") : user_error;
    }
    if (!options) return 0;
    try {
        Job job(*options);
        try {
            return end_job_on_failure(job, [&] { return program(arguments, *options, job); });
        } catch (const JointError& error) {
            return job.rank() == 0 ? report(error, "") : user_error;
        }
    } catch (const std::exception& error) {
        return report(error, "");
    }
}

void end_job(const Job& job, const std::exception& error) {
    if (job.size() == 1) throw;
    const bool names_itself = dynamic_cast<const RankError*>(&error) != nullptr;
    job.abort(report(error, names_itself ? "" : "rank " + std::to_string(job.rank()) + ": "));
}

}  // namespace train_qat
