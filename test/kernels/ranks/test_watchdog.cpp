// The watchdog, with a connection that the test makes stop, fail or hang.
#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "kernels/ranks/communicator.h"
#include "kernels/ranks/watchdog.h"
#include "test/support/catch.h"

using namespace train_qat;

namespace {

// Times of failures under test; what must not happen has `never`.
constexpr double soon = 0.05, never = 1000;

struct Connection {
    std::atomic<uint32_t> begun{0}, finished{0};
    std::atomic<bool> broken{false}, hangs{false};
    std::atomic<int> aborts{0};
    std::promise<std::string> ended;

    // Shared, because the abort may outlive the test.
    static WatchdogHooks hooks(const std::shared_ptr<Connection>& self) {
        WatchdogHooks hooks;
        hooks.rank = "rank 2 of 8";
        hooks.progress = [self] { return RankProgress{self->begun, self->finished, "all_gather"}; };
        hooks.error = [self] { return self->broken ? std::string("peer is gone") : std::string(); };
        hooks.abort = [self] {
            ++self->aborts;
            while (self->hangs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        };
        hooks.end = [self](const std::string& line) { self->ended.set_value(line); };
        return hooks;
    }
};

WatchdogTimes times(double timeout, double until_thrown, double until_stopped) {
    return {timeout, until_thrown, until_stopped, 0.005};
}

std::string error_of(Watchdog& watchdog) {
    for (;;) {
        try {
            watchdog.throw_if_failed();
        } catch (const RankError& error) {
            return error.what();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

TEST_CASE("a collective without progress fails, and the connection is aborted once", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->begun = 1;
    Watchdog watchdog(Connection::hooks(connection), times(soon, never, never));
    CHECK(error_of(watchdog) ==
          "rank 2 of 8: no progress with the other ranks for 0.05 s (all_gather): one of them has died or "
          "hangs; see its output");
    CHECK(watchdog.failed());
    CHECK(watchdog.abort(never));
    CHECK(watchdog.abort(never));
    CHECK(connection->aborts == 1);
}

TEST_CASE("what the connection reports is a failure at once", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->broken = true;
    Watchdog watchdog(Connection::hooks(connection), times(never, never, never));
    CHECK(error_of(watchdog).find("rank 2 of 8: peer is gone") == 0);
}

TEST_CASE("a rank that waits for nobody does not fail", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->begun = connection->finished = 3;
    Watchdog watchdog(Connection::hooks(connection), times(soon, never, never));
    std::this_thread::sleep_for(std::chrono::duration<double>(4 * soon));
    CHECK_FALSE(watchdog.failed());
}

TEST_CASE("progress is no failure, however long it goes on", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    // 32-bit counters that wrap around
    connection->begun = connection->finished = UINT32_MAX - 2;
    Watchdog watchdog(Connection::hooks(connection), times(1, never, never));
    for (int i = 0; i < 12; ++i) {
        ++connection->begun;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        ++connection->finished;
    }
    CHECK_FALSE(watchdog.failed());
    CHECK_NOTHROW(watchdog.throw_if_failed());
    CHECK(connection->aborts == 0);
}

TEST_CASE("the first failure counts", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    Watchdog watchdog(Connection::hooks(connection), times(never, never, never));
    watchdog.fail("first");
    watchdog.fail("second");
    CHECK(error_of(watchdog) == "rank 2 of 8: first");
}

TEST_CASE("a thread that does not meet the failure is ended", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->hangs = true;
    Watchdog watchdog(Connection::hooks(connection), times(never, soon, never));
    watchdog.fail("stuck");
    CHECK(connection->ended.get_future().get() == "rank 2 of 8: stuck");
    CHECK(connection->aborts == 1);
    connection->hangs = false;
}

TEST_CASE("and so is one that hangs on its way out", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->hangs = true;
    Watchdog watchdog(Connection::hooks(connection), times(never, never, soon));
    watchdog.fail("stuck");
    error_of(watchdog);
    CHECK_FALSE(watchdog.abort(0.01));
    CHECK(connection->ended.get_future().get() == "rank 2 of 8: stuck");
    connection->hangs = false;
}

TEST_CASE("a watchdog can stop before a hanging abort returns", "[watchdog]") {
    const auto connection = std::make_shared<Connection>();
    connection->hangs = true;
    {
        Watchdog watchdog(Connection::hooks(connection), times(never, never, never));
        CHECK_FALSE(watchdog.abort(0.01));
    }
    connection->hangs = false;
}
