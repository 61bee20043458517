// Ends a process whose collectives no longer make progress, so that no rank waits forever for one that has
// died. A thread of its own looks at two things: counters that move whenever a collective begins or ends, and
// the connection's own report of errors. After a failure
//   1. the connection is aborted, which lets the waiting thread return,
//   2. that thread meets the failure in throw_if_failed(), as a RankError,
//   3. and where it does not in time, or hangs on its way out, the process ends with exit status 2 after one
//      line on stderr.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

namespace train_qat {

// Begun and finished collectives since the start; they may wrap around.
struct RankProgress {
    uint32_t begun = 0;
    uint32_t finished = 0;
    std::string operation;  // the one under way: "all_gather"
};

struct WatchdogHooks {
    std::string rank;                        // "rank 2 of 8"
    std::function<RankProgress()> progress;  // called by the watchdog's thread, must not wait
    std::function<std::string()> error;      // the same; "" or what the connection reports
    // Called once, on a thread of its own that nobody waits for: it may hang, and may outlive the watchdog.
    std::function<void()> abort;
    std::function<void(const std::string&)> end;  // given the line; empty: prints it and ends the process
};

struct WatchdogTimes {          // seconds
    double timeout = 600;       // without progress
    double until_thrown = 5;    // from the failure to throw_if_failed()
    double until_stopped = 30;  // and from the failure to the end of the watchdog
    double between_looks = 0.25;
};

class Watchdog {
  public:
    Watchdog(WatchdogHooks hooks, const WatchdogTimes& times);
    ~Watchdog();
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

    bool failed() const;
    // Reports a failure that somebody else has seen. The first one counts.
    void fail(const std::string& reason);
    // RankError with the rank and the reason.
    void throw_if_failed();
    // Aborts the connection, if that has not been done, and waits for it. False: it hangs.
    bool abort(double seconds);

  private:
    struct State;
    void run();
    void look();
    void start_abort();

    const WatchdogHooks hooks_;
    const WatchdogTimes times_;
    const std::shared_ptr<State> state_;  // shared with the thread that aborts
    std::thread thread_;
};

}  // namespace train_qat
