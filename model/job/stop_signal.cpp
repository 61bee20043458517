#include "model/job/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <cstring>
#include <ctime>
#include <initializer_list>

namespace train_qat {

namespace {

volatile std::sig_atomic_t requested = 0;  // the signal
volatile std::time_t requested_at = 0;
volatile std::sig_atomic_t says_end = 0;

// Only what a signal handler may call.
void end_at_once(int signal) {
    const char* const line =
        signal == SIGINT    ? "train_qat: stopped by SIGINT; there was nothing to save\n"
        : signal == SIGTERM ? "train_qat: stopped by SIGTERM; there was nothing to save\n"
        : signal == SIGHUP  ? "train_qat: stopped by SIGHUP; there was nothing to save\n"
                            : "train_qat: stopped by SIGUSR1; there was nothing to save\n";
    if (says_end != 0 && ::write(STDERR_FILENO, line, std::strlen(line)) < 0) ::_exit(128 + signal);
    ::_exit(128 + signal);
}

void request_stop(int signal) {
    constexpr std::time_t same_seconds = 2;
    const std::time_t now = std::time(nullptr);
    if (requested != 0 && now - requested_at > same_seconds) {
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
    if (requested != 0) return;
    requested_at = now;
    requested = signal;
}

void handle_stop_signals(void (*handler)(int)) {
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, handler);
    // nohup has it ignored: then the terminal may go.
    struct sigaction hangup = {};
    if (::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
        std::signal(SIGHUP, handler);
}

}  // namespace

void end_on_stop_signals(bool says_so) {
    says_end = says_so ? 1 : 0;
    handle_stop_signals(end_at_once);
}

void save_on_stop_signals() {
    handle_stop_signals(request_stop);
    std::signal(SIGPIPE, SIG_IGN);
}

bool stop_requested() {
    return requested != 0;
}

int stop_exit_code() {
    return 128 + (requested != 0 ? requested : SIGINT);
}

}  // namespace train_qat
