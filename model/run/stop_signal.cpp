#include "model/run/stop_signal.h"

#include <csignal>
#include <ctime>
#include <initializer_list>

namespace train_qat {

namespace {

volatile std::sig_atomic_t requested = 0;
volatile std::time_t requested_at = 0;

void request_stop(int signal) {
    constexpr std::time_t same_seconds = 2;
    const std::time_t now = std::time(nullptr);
    if (requested != 0 && now - requested_at > same_seconds) {
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
    if (requested == 0) requested_at = now;
    requested = 1;
}

}  // namespace

void catch_stop_signals() {
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, request_stop);
}

bool stop_requested() {
    return requested != 0;
}

}  // namespace train_qat
