#include "kernels/cpu/platform/illegal_instruction.h"

#include <unistd.h>
#include <csignal>
#include <dnnl.hpp>
#include <mutex>

namespace train_qat {

namespace {

// Written before the handler is installed: a handler may neither allocate nor lock.
std::string message;
struct sigaction previous;

void explain(int) {
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message.data(), message.size());
    // The instruction is executed again when this returns, and the previous handler, or death, follows.
    sigaction(SIGILL, &previous, nullptr);
}

std::string text_for(const std::string& cpu) {
    const dnnl_version_t* version = dnnl::version();
    return "train_qat: error: illegal instruction on " + cpu + " with oneDNN " +
           std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
           std::to_string(version->patch) +
           ": probably a fault of oneDNN on this CPU; ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 or AVX2 in the "
           "environment may avoid it\n";
}

}  // namespace

void explain_illegal_instructions(const std::string& cpu) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    struct sigaction current = {};
    if (sigaction(SIGILL, nullptr, &current) != 0 || current.sa_handler == explain) return;
    if (message.empty()) message = text_for(cpu);
    previous = current;
    struct sigaction action = {};
    action.sa_handler = explain;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace train_qat
