#include "model/job/failure.h"

#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "kernels/ranks/launch.h"

namespace train_qat {

namespace {

constexpr int internal_error = 1, user_error = 2;

// A thread that the system refuses says only "Resource temporarily unavailable".
std::string cause_of(const std::exception& error) {
    const auto* system = dynamic_cast<const std::system_error*>(&error);
    const bool refused = system != nullptr && system->code() == std::errc::resource_unavailable_try_again;
    return refused ? "a thread cannot be started (give fewer -threads, or raise `ulimit -u`): " : "";
}

// Says what went wrong, in one write so that lines of several ranks stay whole. Returns the exit code.
int report(const std::exception& error, const std::string& where) {
    const bool internal = dynamic_cast<const std::logic_error*>(&error) != nullptr;
    std::cerr << (std::string("train_qat: ") + (internal ? "internal error: " : "error: ") + where +
                  cause_of(error) + error.what() + "\n")
              << std::flush;
    return internal ? internal_error : user_error;
}

// Of a mode whose only result is what it prints (`code` 0: it has none yet): its exit code when that is out.
int check_printed(int code) {
    std::cout.flush();
    // The C library keeps an error that a stream of C++ does not see when it writes line by line.
    if (code != 0 || (std::cout.good() && std::ferror(stdout) == 0)) return code;
    return report(std::runtime_error("the standard output cannot be written to, so its text is not whole; "
                                     "is its disk full?"),
                  "");
}

// Of this process as the launcher says; alone where it says something wrong, which shows again where it matters.
Launch launch_or_alone() {
    try {
        return find_launch();
    } catch (const std::runtime_error&) {
        return {};
    }
}

}  // namespace

bool starts_alone() {
    return launch_or_alone().size == 1;
}

int run_to_exit_code(const std::vector<std::string>& arguments, const Program& program) {
    // All ranks have the same command line.
    const bool first = launch_or_alone().rank == 0;
    std::ostream nowhere(nullptr);
    std::optional<Options> options;
    try {
        options = parse_command_line(arguments, first ? std::cout : nowhere);
    } catch (const std::runtime_error& error) {
        return first ? report(error, "") : user_error;
    }
    if (!options) return check_printed(0);
    try {
        Job job(*options);
        try {
            const int code = end_job_on_failure(job, [&] { return program(arguments, *options, job); });
            const bool only_prints = options->plan_only || options->evaluate_only || options->sample;
            return only_prints ? check_printed(code) : code;
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
