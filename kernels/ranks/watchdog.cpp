#include "kernels/ranks/watchdog.h"

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <sstream>

#include "kernels/ranks/communicator.h"

namespace train_qat {

namespace {

using Clock = std::chrono::steady_clock;

Clock::duration duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

void end_process(const std::string& message) {
    std::fprintf(stderr, "train_qat: error: %s\n", message.c_str());
    std::fflush(stderr);
    _exit(2);  // destructors would wait for what hangs
}

}  // namespace

struct Watchdog::State {
    mutable std::mutex mutex;
    std::condition_variable changed;
    std::string failure;  // "": none
    Clock::time_point failed_at;
    bool thrown = false, stopping = false, aborting = false, aborted = false;
    // of the watchdog's thread alone
    RankProgress last;
    Clock::time_point last_change = Clock::now();
};

Watchdog::Watchdog(WatchdogHooks hooks, const WatchdogTimes& times)
    : hooks_(std::move(hooks)),
      times_(times),
      state_(std::make_shared<State>()),
      thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
    {
        const std::lock_guard lock(state_->mutex);
        state_->stopping = true;
    }
    state_->changed.notify_all();
    thread_.join();
}

bool Watchdog::failed() const {
    const std::lock_guard lock(state_->mutex);
    return !state_->failure.empty();
}

void Watchdog::fail(const std::string& reason) {
    {
        const std::lock_guard lock(state_->mutex);
        if (!state_->failure.empty()) return;
        state_->failure = hooks_.rank + ": " + reason;
        state_->failed_at = Clock::now();
    }
    state_->changed.notify_all();
}

void Watchdog::throw_if_failed() {
    const std::lock_guard lock(state_->mutex);
    if (state_->failure.empty()) return;
    state_->thrown = true;
    throw RankError(state_->failure);
}

bool Watchdog::abort(double seconds) {
    std::unique_lock lock(state_->mutex);
    state_->thrown = true;  // whoever calls this is on its way out
    start_abort();
    return state_->changed.wait_for(lock, duration(seconds), [this] { return state_->aborted; });
}

// With the mutex held.
void Watchdog::start_abort() {
    if (state_->aborting) return;
    state_->aborting = true;
    std::thread([state = state_, abort = hooks_.abort] {
        if (abort) abort();
        {
            const std::lock_guard lock(state->mutex);
            state->aborted = true;
        }
        state->changed.notify_all();
    }).detach();
}

void Watchdog::look() {
    const std::string error = hooks_.error ? hooks_.error() : "";
    if (!error.empty()) {
        fail(error + ": one of the other ranks has died, or the network between them; see their output");
        return;
    }
    const RankProgress now = hooks_.progress();
    const bool moved = now.begun != state_->last.begun || now.finished != state_->last.finished;
    if (moved || now.begun == now.finished) state_->last_change = Clock::now();
    state_->last = now;
    if (Clock::now() - state_->last_change <= duration(times_.timeout)) return;
    std::ostringstream text;
    text << "no progress with the other ranks for " << times_.timeout << " s (" << now.operation
         << "): one of them has died or hangs; see its output";
    fail(text.str());
}

void Watchdog::run() {
    std::unique_lock lock(state_->mutex);
    while (!state_->stopping) {
        state_->changed.wait_for(lock, duration(times_.between_looks));
        if (state_->stopping) return;
        if (state_->failure.empty()) {
            lock.unlock();
            look();
            lock.lock();
        }
        if (state_->failure.empty()) continue;
        start_abort();
        const double patience = state_->thrown ? times_.until_stopped : times_.until_thrown;
        if (Clock::now() - state_->failed_at <= duration(patience)) continue;
        const std::string line = state_->failure;
        lock.unlock();
        hooks_.end ? hooks_.end(line) : end_process(line);
        return;
    }
}

}  // namespace train_qat
