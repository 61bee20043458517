// The live table of a sweep and the files behind it.
#include "model/sweep/progress.h"

#include <algorithm>
#include <cmath>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/sweep_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Jobs: 0 trunk to 60, 1 leaf "long" to 100, 2 trunk to 80, 3 and 4 leaves "b4" and "b8" to 100. A step is
// 2000 FLOPs.
SweepPlan small_plan() {
    return plan_sweep(
        {sweep_run("long", 100, 4, 0.4), sweep_run("b4", 100, 4, 0.2), sweep_run("b8", 100, 8, 0.2)});
}

JobView view(JobState state, std::optional<JobProgress> progress = std::nullopt) {
    JobView result;
    result.status.state = state;
    if (state == JobState::running) result.status.worker = "rank 3";
    if (state == JobState::failed) result.status.reason = "loss is not finite";
    result.progress = progress;
    return result;
}

int64_t lines_of(const std::string& text) {
    return std::count(text.begin(), text.end(), '\n');
}

}  // namespace

TEST_CASE("progress goes through files", "[sweep_progress]") {
    const TemporaryDirectory directory;
    const SweepQueue queue(directory / "sweep", small_plan());
    REQUIRE(queue.claim("rank 7") == 0);
    CHECK_FALSE(view_of(queue)[0].progress);
    const SweepJob& job = queue.plan().jobs[0];
    write_progress(queue.directory(), job, {12, 3.5, 1234.5});
    write_progress(queue.directory(), job, {13, std::nan(""), 99});
    const auto views = view_of(queue);
    REQUIRE(views[0].progress);
    CHECK(views[0].status.worker == "rank 7");
    CHECK(views[0].progress->step == 13);
    CHECK(std::isnan(views[0].progress->loss));
    CHECK(views[0].progress->tokens_per_second == 99);
    CHECK_FALSE(views[1].progress);
    write_bytes(queue.directory() + "/" + job.id + ".progress", "{\"step\": ");
    CHECK_FALSE(view_of(queue)[0].progress);
    write_progress("/nonexistent", job, {1, 1, 1});  // no reason to stop training
    queue.done(0);
    CHECK_FALSE(view_of(queue)[0].progress);
    queue.clear_claims();
    CHECK_FALSE(read_progress(queue.directory(), job));
}

TEST_CASE("estimates count operations", "[sweep_progress]") {
    const SweepPlan plan = small_plan();
    REQUIRE(plan.jobs.size() == 5);
    std::vector<JobView> jobs(5, view(JobState::waiting));
    SweepEstimate known = estimate(plan, jobs);
    CHECK(known.total == 160 * 2000.0);  // 60 + 40 + 20 + 20 + 20 steps
    CHECK(known.remaining == known.total);
    CHECK(known.longest == 100 * 2000.0);
    CHECK_FALSE(known.seconds_left);

    // One worker at one step a second is at step 50: nothing is parallel, so all that remains counts.
    jobs[0] = view(JobState::running, JobProgress{50, 3, 1000});
    known = estimate(plan, jobs);
    CHECK(known.done == 50 * 2000.0);
    CHECK(known.longest == 50 * 2000.0);
    CHECK(known.workers == 1);
    CHECK(known.seconds_left == Approx(110));

    // Three workers: two at the last leaves, one at its start of 40 steps, which is the longest chain.
    jobs[0] = jobs[2] = view(JobState::done);
    jobs[1] = view(JobState::running, JobProgress{60, 3, 1000});
    jobs[3] = jobs[4] = view(JobState::running, JobProgress{95, 3, 1000});
    known = estimate(plan, jobs);
    CHECK(known.remaining == 50 * 2000.0);
    CHECK(known.longest == 40 * 2000.0);
    CHECK(known.seconds_left == Approx(40));

    // Nothing remains of what failed, and jobs that nobody needs do not count at all.
    jobs[1] = view(JobState::failed);
    jobs[2] = view(JobState::unneeded);
    known = estimate(plan, jobs);
    CHECK(known.total == 140 * 2000.0);
    CHECK(known.remaining == 10 * 2000.0);
    CHECK(known.seconds_left == Approx(5));

    // Reports from outside the job's steps, as of a new worker on an old file, stay within them.
    jobs[3] = view(JobState::running, JobProgress{7, 3, 1000});
    jobs[4] = view(JobState::running, JobProgress{700, 3, std::nan("")});
    known = estimate(plan, jobs);
    CHECK(known.done == (60 + 20) * 2000.0);
    CHECK(known.workers == 1);
    CHECK_THROWS_AS(estimate(plan, {}), std::logic_error);
}

TEST_CASE("the table shows what runs and what failed", "[sweep_progress]") {
    const SweepPlan plan = small_plan();
    std::vector<JobView> jobs(5, view(JobState::waiting));
    std::string text = format_progress(plan, jobs);
    CHECK(text == "sweep [--------------------]   0.0%  0 done, 0 running, 0 failed, 5 waiting\n");
    jobs[0] = view(JobState::done);
    jobs[1] = view(JobState::running, JobProgress{80, 3.45678, 12345});
    jobs[2] = view(JobState::failed);
    jobs[3] = jobs[4] = view(JobState::failed);
    text = format_progress(plan, jobs);
    INFO(text);
    CHECK(lines_of(text) == 4);
    for (const char* part :
         {"]  50.0%", "[##########-", "1 done, 1 running, 3 failed, 0 waiting", "long", "rank 3", "80/100",
          "3.4568", "12,345", "1.6s", "failed: trunk 1.0M to step 80 (loss is not finite)"}) {
        INFO(part);
        CHECK(text.find(part) != std::string::npos);
    }
    CHECK(text.find("b4") == std::string::npos);  // the trunk's failure says it
    for (JobView& job : jobs) job = view(JobState::done);
    CHECK(format_progress(plan, jobs).find("[####################] 100.0%  5 done") != std::string::npos);
    CHECK_THROWS_AS(format_progress(plan, jobs, 5), std::logic_error);
}

TEST_CASE("the table stays short", "[sweep_progress]") {
    std::vector<SweepRunPlan> runs;
    for (int i = 0; i < 60; ++i)
        runs.push_back(sweep_run("run" + std::to_string(i), 10, 4, 1, "key " + std::to_string(i)));
    const SweepPlan plan = plan_sweep(runs);
    for (const int lines : {6, 13, 20}) {
        for (const size_t failed : {0, 1, 3, 30}) {
            for (const size_t running : {0, 1, 4, 5, 16, 30}) {
                std::vector<JobView> jobs(60, view(JobState::waiting));
                std::fill_n(jobs.begin(), failed, view(JobState::failed));
                std::fill_n(jobs.end() - 30, running, view(JobState::running, JobProgress{1, 2, 3}));
                const std::string text = format_progress(plan, jobs, lines);
                INFO(text);
                CHECK(lines_of(text) <= lines);
                CHECK((text.find("run30") != std::string::npos) ==
                      (running > 0 && (lines > 6 || failed < 3 || running < 2)));
                CHECK((text.find("more") != std::string::npos) ==
                      (failed > 3 || static_cast<int64_t>(running) >
                                         lines - 2 - static_cast<int64_t>(std::min<size_t>(failed, 3))));
            }
        }
    }
}
