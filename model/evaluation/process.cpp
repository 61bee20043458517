#include "model/evaluation/process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <stdexcept>

#include "model/job/stop_signal.h"

extern char** environ;

namespace train_qat {

namespace {

std::runtime_error cannot_start(const std::string& program, int error) {
    return std::runtime_error(program + ": cannot be started: " + std::strerror(error));
}

// Starts it with its stderr at `errors`, an open file.
pid_t spawn(const std::vector<std::string>& command, int errors) {
    std::vector<char*> arguments;
    for (const std::string& text : command) arguments.push_back(const_cast<char*>(text.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
    pid_t process = 0;
    const int error = ::posix_spawnp(&process, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw cannot_start(command[0], error);
    return process;
}

// What the process writes to its errors. When this one is asked to stop, so is the other.
std::string read_to_the_end(int file, pid_t process) {
    constexpr int look_milliseconds = 100;
    std::string text;
    char buffer[4096];
    for (bool told = false;;) {
        if (!told && stop_requested()) told = ::kill(process, SIGTERM) == 0;
        pollfd ready{file, POLLIN, 0};
        if (::poll(&ready, 1, look_milliseconds) <= 0) continue;
        const ssize_t count = ::read(file, buffer, sizeof buffer);
        if (count > 0) text.append(buffer, static_cast<size_t>(count));
        if (count == 0 || (count < 0 && errno != EINTR)) return text;
    }
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& command) {
    int ends[2];  // for reading, for writing
    if (::pipe2(ends, O_CLOEXEC) != 0) throw cannot_start(command[0], errno);
    pid_t process;
    try {
        process = spawn(command, ends[1]);
    } catch (...) {
        ::close(ends[0]);
        ::close(ends[1]);
        throw;
    }
    ::close(ends[1]);
    ProcessResult result;
    result.errors = read_to_the_end(ends[0], process);
    ::close(ends[0]);
    int status = 0;
    while (::waitpid(process, &status, 0) < 0 && errno == EINTR) {
    }
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
}

}  // namespace train_qat
