#include "model/sweep/worker.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <new>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/ranks/agreement.h"
#include "model/job/stop_signal.h"
#include "model/run/metrics.h"
#include "model/storage/checkpoint.h"
#include "model/storage/output_lock.h"
#include "model/sweep/progress.h"
#include "model/sweep/shard_record.h"
#include "model/units.h"

namespace train_qat {

namespace {

using Clock = std::chrono::steady_clock;

// What next_job returns instead of a job.
constexpr int none_left = -1, interrupted = -2, none_ready = -3;

}  // namespace

Worker::Worker(const Sweep& sweep, const SweepQueue& queue, Backend& backend, Communicator& communicator,
               const TrainFunction& train, const std::string& name)
    : sweep_(sweep),
      queue_(queue),
      backend_(backend),
      communicator_(communicator),
      train_(train),
      name_(name) {}

bool Worker::run() {
    while (true) {
        const int job = next_job();
        if (job == none_left) return true;
        if (job == interrupted) return false;
        if (job != none_ready && !run_job(job)) return false;
    }
}

// The team's first rank takes it and tells the others; often, for they do not wait for ever.
int Worker::next_job() {
    const int job = leads() ? claim() : none_ready;
    return static_cast<int>(gather_numbers(communicator_, job)[0]);
}

int Worker::claim() {
    using std::chrono::milliseconds;
    constexpr milliseconds first_pause(100), longest_pause(2000);
    if (stop_requested()) queue_.request_stop();
    if (queue_.stop_requested()) return interrupted;
    if (const std::optional<int> job = queue_.claim(name_)) {
        pause_ = first_pause;
        return data_is_as_before(*job) ? *job : interrupted;
    }
    if (queue_.finished()) return none_left;
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, longest_pause);
    return none_ready;
}

// Else the job is given back, and all workers stop: what they would train next is no part of this sweep.
bool Worker::data_is_as_before(int job) const {
    try {
        check_shards(sweep_, job);
        return true;
    } catch (const std::runtime_error& error) {
        queue_.release(job);
        queue_.request_stop(error.what());
        return false;
    }
}

// False when it was interrupted.
bool Worker::run_job(int job) {
    std::ofstream log;
    try {
        const Options own = options_of_job(sweep_, job);
        std::optional<OutputLock> lock;
        run_on_rank_0(communicator_, [&] {
            lock.emplace(own.output_directory, "sweep's run");
            log.open(own.output_directory + "/log.txt", std::ios::app);
        });
        const RunOutcome outcome =
            train_(own, backend_, communicator_, log, leads() ? observer(job) : StepObserver());
        if (!outcome.finished) {
            if (leads()) give_back(job);
            return false;
        }
        if (leads()) finish(job, outcome);
    } catch (const RankError&) {
        throw;
    } catch (const std::runtime_error& error) {
        // Of several ranks one that fails alone leaves the others waiting for it.
        if (communicator_.size() > 1 && dynamic_cast<const JointError*>(&error) == nullptr) throw;
        if (leads()) fail(job, error.what(), log);
    } catch (const std::bad_alloc&) {
        if (communicator_.size() > 1) throw;
        fail(job, "not enough host memory", log);
    }
    return true;
}

StepObserver Worker::observer(int job) const {
    return [this, job, last = Clock::time_point()](int64_t step, double loss, double rate) mutable {
        constexpr auto interval = std::chrono::seconds(1);
        if (Clock::now() - last < interval) return false;
        last = Clock::now();
        write_progress(queue_.directory(), job_of(job), {step, loss, rate});
        return queue_.stop_requested();
    };
}

void Worker::give_back(int job) const {
    queue_.release(job);
    queue_.request_stop();
}

void Worker::finish(int job, const RunOutcome& trained) const {
    std::optional<double> loss;
    if (job_of(job).run >= 0) {
        SweepOutcome outcome = outcome_of(sweep_, job);
        outcome.results = trained.results;
        outcome.seconds = trained.seconds;
        loss = final_validation_loss(outcome.plan, outcome.results);
        append_result(results_path(sweep_), result_record(outcome));
    }
    queue_.done(job, loss);
    say("done", job,
        (loss ? formatted(", validation loss %.4f", *loss) : std::string()) + ", " +
            format_duration(trained.seconds));
    if (sweep_.options.keep > 0) remove_used_trunks();
}

void Worker::fail(int job, const std::string& reason, std::ostream& log) const {
    log << "failed: " << reason << std::endl;
    for (const SweepQueue::FailedRun& failed : queue_.failed(job, reason))
        append_result(results_path(sweep_),
                      failure_record(sweep_, leaf_of(sweep_, failed.run), failed.reason));
    say("FAILED", job, ": " + reason);
}

void Worker::say(const char* what, int job, const std::string& more) const {
    std::cout << (std::string(what) + " " + job_name(sweep_.plan, job) + more + "\n") << std::flush;
}

// Of trunks from which everything has branched off. Other workers may be at the same.
void Worker::remove_used_trunks() const {
    const std::vector<JobStatus> status = queue_.status(false);
    std::vector<bool> used(status.size(), false);
    for (size_t job = 0; job < status.size(); ++job) {
        const int parent = sweep_.plan.jobs[job].parent;
        if (parent >= 0 && (status[job].state == JobState::waiting || status[job].state == JobState::running))
            used[parent] = true;
    }
    for (size_t job = 0; job < status.size(); ++job) {
        const auto trunk = static_cast<int>(job);
        if (job_of(trunk).run >= 0 || used[job] || status[job].state != JobState::done) continue;
        try {
            remove_checkpoints(directory_of_job(sweep_, trunk));
        } catch (const std::runtime_error&) {  // another worker was faster, or the next one tries again
        }
    }
}

}  // namespace train_qat
