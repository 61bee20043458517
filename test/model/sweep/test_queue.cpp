// The queue of a sweep: order, dependencies, exclusive claims, restarts, failures and changed grids.
#include "model/sweep/queue.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/sweep_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Jobs: 0 trunk to 60; 1 leaf of run 0 (40 steps left); 2 trunk 60 to 80; 3, 4 leaves of runs 1, 2 (20 steps
// left); 5 leaf of run 3, of another key (30 steps).
SweepPlan small_plan() {
    return plan_sweep({sweep_run("long", 100, 4, 0.4), sweep_run("b4", 100, 4, 0.2),
                       sweep_run("b8", 100, 8, 0.2), sweep_run("other", 30, 4, 0.3, "seed 2")});
}

size_t count(const SweepQueue& queue, JobState state) {
    const auto jobs = queue.status();
    return static_cast<size_t>(
        std::count_if(jobs.begin(), jobs.end(), [&](const JobStatus& job) { return job.state == state; }));
}

// Trains all that is ready, and what becomes ready by it.
std::vector<int> drain(const SweepQueue& queue) {
    std::vector<int> order;
    while (const auto job = queue.claim("drain")) {
        order.push_back(*job);
        queue.done(*job);
    }
    return order;
}

bool all(int) {
    return true;
}

}  // namespace

TEST_CASE("jobs are claimed by priority, each after its trunk", "[sweep_queue]") {
    const TemporaryDirectory directory;
    const SweepQueue queue(directory / "sweep", small_plan());
    REQUIRE(queue.plan().jobs.size() == 6);
    REQUIRE(queue.plan().jobs[2].end_step == 80);
    CHECK_FALSE(queue.finished());
    CHECK(queue.claim("rank 0") == 0);  // 60 + 40 steps
    CHECK(queue.claim("rank 1") == 5);  // the only other one that needs no trunk
    CHECK_FALSE(queue.claim("rank 2"));
    CHECK_FALSE(queue.finished());
    CHECK(queue.status()[0].state == JobState::running);
    CHECK(queue.status()[0].worker == "rank 0");
    CHECK(queue.status()[5].worker == "rank 1");
    queue.done(0);
    std::set<int> next;
    for (int i = 0; i < 2; ++i) next.insert(queue.claim("rank 2").value());
    CHECK(next == std::set<int>{1, 2});  // 40 steps each
    CHECK_FALSE(queue.claim("rank 2"));
    queue.done(2);
    CHECK(queue.claim("rank 2") == 3);
    CHECK(queue.claim("rank 2") == 4);
    queue.done(1, 3.25);
    queue.done(3, 3.5);
    queue.done(5);
    CHECK_FALSE(queue.finished());
    queue.done(4);
    CHECK(queue.finished());
    CHECK_FALSE(queue.claim("rank 0"));
    CHECK(queue.status()[1].validation_loss == 3.25);
    CHECK_FALSE(queue.status()[5].validation_loss);
    CHECK(count(queue, JobState::done) == 6);
}

TEST_CASE("every job is claimed once, by however many workers", "[sweep_queue]") {
    const TemporaryDirectory directory;
    const SweepPlan plan = plan_sweep(one_trunk_runs());
    std::vector<std::atomic<int>> claims(plan.jobs.size()), finished(plan.jobs.size());
    std::atomic<bool> too_early = false;
    const auto work = [&](const SweepQueue& queue, int worker) {
        while (!queue.finished()) {
            const auto job = queue.claim("worker " + std::to_string(worker));
            if (!job) continue;
            const int parent = plan.jobs[*job].parent;
            if (parent >= 0 && finished[parent] == 0) too_early = true;
            ++claims[*job];
            ++finished[*job];
            queue.done(*job);
        }
    };
    const SweepQueue shared(directory / "sweep", plan);
    std::vector<std::thread> threads;
    for (int worker = 0; worker < 7; ++worker)
        threads.emplace_back([&, worker] {
            if (worker % 2) return work(shared, worker);
            work(SweepQueue(directory / "sweep", plan), worker);
        });
    for (std::thread& thread : threads) thread.join();
    for (const auto& claim : claims) CHECK(claim == 1);
    CHECK_FALSE(too_early);
}

TEST_CASE("a sweep goes on where it was interrupted", "[sweep_queue]") {
    const TemporaryDirectory directory;
    {
        const SweepQueue queue(directory / "sweep", small_plan());
        queue.done(queue.claim("rank 0").value());
        REQUIRE(queue.claim("rank 1"));  // and killed
    }
    const SweepQueue queue(directory / "sweep", small_plan());
    write_bytes(queue.directory() + "/" + queue.plan().jobs[3].id + ".done.partial", "half");
    CHECK(count(queue, JobState::running) == 1);
    queue.clear_claims();
    CHECK(count(queue, JobState::running) == 0);
    CHECK(count(queue, JobState::done) == 1);
    CHECK(queue.trunks_to_start_from(all) == std::vector<int>{0});
    CHECK(drain(queue).size() == 5);
    CHECK(queue.finished());
    queue.clear_claims();
    CHECK_FALSE(queue.claim("rank 0"));
    CHECK(queue.finished());
    CHECK(queue.trunks_to_start_from(all).empty());
}

TEST_CASE("a trunk is trained only for jobs that start from it", "[sweep_queue]") {
    const TemporaryDirectory directory;
    const SweepQueue queue(directory / "sweep", small_plan());
    drain(queue);
    queue.clear_claims();
    queue.forget_done(2);
    CHECK(queue.finished());  // all that starts from it is done
    CHECK(queue.status()[2].state == JobState::unneeded);
    queue.forget_done(4);
    CHECK_FALSE(queue.finished());
    CHECK(queue.trunks_to_start_from(all) == std::vector<int>{0});
    CHECK(queue.trunks_to_start_from([](int job) { return job != 2; }).empty());
    CHECK(drain(queue) == std::vector<int>{2, 4});
}

TEST_CASE("what starts from a failed trunk fails with it", "[sweep_queue]") {
    const TemporaryDirectory directory;
    const SweepQueue queue(directory / "sweep", small_plan());
    queue.done(queue.claim("w").value());
    std::vector<int> claimed;
    while (const auto job = queue.claim("w")) claimed.push_back(*job);
    REQUIRE(claimed.size() == 3);  // 1, 2 and 5
    const auto failures = queue.failed(2, "loss is not\nfinite at step 70");
    REQUIRE(failures.size() == 2);
    CHECK(failures[0].run == 1);
    CHECK(failures[1].run == 2);
    CHECK(mentions(failures[0].reason, {"its trunk", "to step 80", "failed", "not finite at step 70"}));
    CHECK(count(queue, JobState::failed) == 3);
    CHECK(queue.status()[2].reason == "loss is not finite at step 70");
    CHECK(queue.status()[4].reason == failures[1].reason);
    CHECK_FALSE(queue.claim("w"));
    CHECK_FALSE(queue.finished());  // 1 and 5 are training
    queue.done(1);
    const auto alone = queue.failed(5, "no memory");
    REQUIRE(alone.size() == 1);
    CHECK(alone[0].run == 3);
    CHECK(alone[0].reason == "no memory");
    CHECK(queue.finished());
    queue.clear_claims();
    CHECK(queue.finished());  // failures stay
    // Killed between two marks: those below a failed trunk count as failed.
    std::filesystem::remove(queue.directory() + "/" + queue.plan().jobs[3].id + ".failed");
    CHECK(queue.status()[3].state == JobState::failed);
    CHECK(queue.finished());
    queue.clear_claims(true);
    CHECK(drain(queue) == std::vector<int>{2, 5, 3, 4});
    CHECK(count(queue, JobState::done) == 6);
}

TEST_CASE("a changed grid takes over equal jobs and no others", "[sweep_queue]") {
    const TemporaryDirectory directory;
    drain(SweepQueue(directory / "sweep", small_plan()));
    // The first four, another fraction on the same trunk, and another key.
    std::vector<SweepRunPlan> runs = small_plan().runs;
    runs.push_back(sweep_run("new", 100, 4, 0.5));
    runs.push_back(sweep_run("third seed", 30, 4, 0.3, "seed 3"));
    const SweepQueue queue(directory / "sweep", plan_sweep(runs));
    queue.clear_claims();
    std::vector<std::string> trained;
    for (const int job : drain(queue)) trained.push_back(job_name(queue.plan(), job));
    CHECK(trained == std::vector<std::string>{"trunk 1.0M to step 50", "new", "third seed"});
    // The same names for other runs.
    runs = {sweep_run("b4", 100, 4, 0.2, "seed 4"), sweep_run("b8", 100, 8, 0.2, "seed 4")};
    CHECK(drain(SweepQueue(directory / "sweep", plan_sweep(runs))).size() == 3);
}

TEST_CASE("errors of the queue name the path", "[sweep_queue]") {
    const TemporaryDirectory directory;
    directory.write("file", "");
    CHECK(
        mentions(error_of([&] { SweepQueue(directory / "file", small_plan()); }), {"file/queue", "create"}));
    const SweepQueue queue(directory / "sweep", small_plan());
    std::filesystem::remove(queue.directory());
    CHECK(mentions(error_of([&] { queue.claim("w"); }), {"sweep/queue"}));
}
