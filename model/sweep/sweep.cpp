#include "model/sweep/sweep.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "kernels/ranks/agreement.h"
#include "model/units.h"
#include "model/run/failure.h"
#include "model/run/metrics.h"
#include "model/storage/checkpoint.h"
#include "model/storage/manifest.h"
#include "model/sweep/grid.h"
#include "model/sweep/progress.h"
#include "model/sweep/queue.h"
#include "model/sweep/results.h"

namespace train_qat {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// What is asked for, job by job.
struct Sweep {
    std::vector<Options> runs;  // in the order of plan.runs
    SweepPlan plan;
};

Sweep plan_all_runs(const std::vector<std::string>& arguments, const Options& options,
                    const SweepWork& work) {
    Sweep sweep;
    std::vector<SweepRunPlan> plans;
    for (const SweepRun& run : sweep_runs(read_sweep_grid(options.sweep))) {
        try {
            Options own = *parse_command_line(with_flags(arguments, run.flags));
            own.sweep.clear();
            plans.push_back(work.plan(own, options.sweep_ranks));
            sweep.runs.push_back(std::move(own));
        } catch (const std::runtime_error& error) {
            throw std::runtime_error("-sweep " + options.sweep + ": run " + run.name + ": " + error.what());
        }
        plans.back().name = run.name;
    }
    sweep.plan = plan_sweep(std::move(plans));
    return sweep;
}

std::string checkpoint_of(const std::string& output, const SweepPlan& plan, int trunk) {
    return trunk_directory(output, plan, trunk) + "/" + checkpoint_name(plan.jobs[trunk].end_step);
}

std::string results_path(const Options& options) {
    return options.output_directory + "/results.jsonl";
}

// All but the results of the run that a leaf finishes.
SweepOutcome outcome_of(const Sweep& sweep, const Options& options, int leaf) {
    const SweepJob& job = sweep.plan.jobs[leaf];
    const Options& own = sweep.runs[job.run];
    SweepOutcome outcome;
    outcome.run = sweep.plan.runs[job.run].name;
    outcome.job = job.id;
    outcome.asked_fraction = own.plan.qat_fraction;
    outcome.asked_cooldown = own.plan.cooldown;
    outcome.seed = own.seed;
    outcome.plan = sweep.plan.runs[job.run].plan;
    outcome.trained_steps = job.end_step - job.first_step;
    outcome.shared_steps = job.first_step;
    outcome.directory = run_directory(options.output_directory, sweep.plan, leaf);
    return outcome;
}

nlohmann::ordered_json failure_record(const Sweep& sweep, const Options& options, int leaf,
                                      const std::string& reason) {
    SweepOutcome outcome = outcome_of(sweep, options, leaf);
    outcome.failure = reason;
    return result_record(outcome);
}

// Prints the table of a sweep now and then, from a thread of its own.
class ProgressPrinter {
  public:
    explicit ProgressPrinter(const SweepQueue& queue) : queue_(queue), thread_([this] { run(); }) {}
    ~ProgressPrinter() {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        ended_.notify_all();
        thread_.join();
    }

  private:
    void run() {
        constexpr auto interval = std::chrono::seconds(30);
        std::unique_lock lock(mutex_);
        while (!ended_.wait_for(lock, interval, [this] { return ending_; })) {
            try {
                std::cout << "\n" << format_progress(queue_.plan(), view_of(queue_)) << std::flush;
            } catch (const std::runtime_error& error) {
                std::cout << "progress: " << error.what() << std::endl;  // the training goes on
            }
        }
    }

    const SweepQueue& queue_;
    std::mutex mutex_;
    std::condition_variable ended_;
    bool ending_ = false;
    std::thread thread_;  // last: it uses the members above
};

// A team of ranks that trains one job after another.
class Worker {
  public:
    Worker(const Sweep& sweep, const Options& options, const SweepQueue& queue, Backend& backend,
           Communicator& communicator, const SweepWork& work, const std::string& name)
        : sweep_(sweep),
          options_(options),
          queue_(queue),
          backend_(backend),
          communicator_(communicator),
          work_(work),
          name_(name) {}

    // Until no job is left. False when it was interrupted.
    bool run() {
        while (true) {
            const int job = next_job();
            if (job == none_left) return true;
            if (job == interrupted) return false;
            if (job != none_ready && !run_job(job)) return false;
        }
    }

  private:
    // What next_job returns instead of a job.
    static constexpr int none_left = -1, interrupted = -2, none_ready = -3;

    bool leads() const { return communicator_.rank() == 0; }
    const SweepJob& job_of(int job) const { return sweep_.plan.jobs[job]; }

    // The team's first rank takes it and tells the others; often, for they do not wait for ever.
    int next_job() {
        const int job = leads() ? claim() : none_ready;
        return static_cast<int>(gather_numbers(communicator_, job)[0]);
    }

    int claim() {
        using std::chrono::milliseconds;
        constexpr milliseconds first_pause(100), longest_pause(2000);
        if (work_.stop_requested()) queue_.request_stop();
        if (queue_.stop_requested()) return interrupted;
        if (const std::optional<int> job = queue_.claim(name_)) {
            pause_ = first_pause;
            return *job;
        }
        if (queue_.finished()) return none_left;
        std::this_thread::sleep_for(pause_);
        pause_ = std::min(2 * pause_, longest_pause);
        return none_ready;
    }

    std::string directory_of(int job) const {
        return job_of(job).run < 0 ? trunk_directory(options_.output_directory, sweep_.plan, job)
                                   : run_directory(options_.output_directory, sweep_.plan, job);
    }

    Options options_of(int job) const {
        const SweepJob& description = job_of(job);
        Options own = sweep_.runs[description.plan_of];
        own.output_directory = directory_of(job);
        own.resume = true;  // what an interrupted sweep has left of it
        if (description.run < 0) {
            own.trunk = true;
            own.until = description.end_step;
        }
        if (description.parent >= 0)
            own.from = checkpoint_of(options_.output_directory, sweep_.plan, description.parent);
        return own;
    }

    // False when it was interrupted.
    bool run_job(int job) {
        std::ofstream log;
        try {
            const Options own = options_of(job);
            if (leads()) {
                fs::create_directories(own.output_directory);
                log.open(own.output_directory + "/log.txt", std::ios::app);
            }
            const TrainingOutcome outcome =
                work_.train(own, backend_, communicator_, log, leads() ? observer(job) : StepObserver());
            if (!outcome.finished) {
                if (leads()) give_back(job);
                return false;
            }
            if (leads()) finish(job, own, outcome);
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

    void give_back(int job) const {
        queue_.release(job);
        queue_.request_stop();
    }

    StepObserver observer(int job) const {
        return [this, job, last = Clock::time_point()](int64_t step, double loss, double rate) mutable {
            constexpr auto interval = std::chrono::seconds(1);
            if (Clock::now() - last < interval) return false;
            last = Clock::now();
            write_progress(queue_.directory(), job_of(job), {step, loss, rate});
            return queue_.stop_requested();
        };
    }

    void finish(int job, const Options& own, const TrainingOutcome& trained) {
        std::optional<double> loss;
        const int run = job_of(job).run;
        if (run >= 0) {
            SweepOutcome outcome = outcome_of(sweep_, options_, job);
            outcome.results = trained.results;
            outcome.seconds = trained.seconds;
            loss = final_validation_loss(outcome.plan, outcome.results);
            append_result(results_path(options_), result_record(outcome));
        }
        queue_.done(job, loss);
        say("done", job,
            (loss ? formatted(", validation loss %.4f", *loss) : std::string()) + ", " +
                format_duration(trained.seconds));
        if (own.keep > 0) remove_used_trunks();
    }

    void fail(int job, const std::string& reason, std::ostream& log) {
        log << "failed: " << reason << std::endl;
        for (const SweepQueue::FailedRun& failed : queue_.failed(job, reason))
            append_result(results_path(options_),
                          failure_record(sweep_, options_, leaf_of(failed.run), failed.reason));
        say("FAILED", job, ": " + reason);
    }

    int leaf_of(int run) const {
        for (size_t job = 0; job < sweep_.plan.jobs.size(); ++job)
            if (sweep_.plan.jobs[job].run == run) return static_cast<int>(job);
        throw std::logic_error("run_sweep: a run without a job");
    }

    void say(const char* what, int job, const std::string& more) const {
        std::cout << (std::string(what) + " " + job_name(sweep_.plan, job) + more + "\n") << std::flush;
    }

    // Of trunks from which everything has branched off. Other workers may be at the same.
    void remove_used_trunks() const {
        const std::vector<JobStatus> status = queue_.status(false);
        std::vector<bool> used(status.size(), false);
        for (size_t job = 0; job < status.size(); ++job) {
            const int parent = sweep_.plan.jobs[job].parent;
            if (parent >= 0 &&
                (status[job].state == JobState::waiting || status[job].state == JobState::running))
                used[parent] = true;
        }
        for (size_t job = 0; job < status.size(); ++job) {
            const auto trunk = static_cast<int>(job);
            if (job_of(trunk).run >= 0 || used[job] || status[job].state != JobState::done) continue;
            try {
                remove_checkpoints(trunk_directory(options_.output_directory, sweep_.plan, trunk));
            } catch (const std::runtime_error&) {  // another worker was faster, or the next one tries again
            }
        }
    }

    const Sweep& sweep_;
    const Options& options_;
    const SweepQueue& queue_;
    Backend& backend_;
    Communicator& communicator_;
    const SweepWork& work_;
    const std::string name_;
    std::chrono::milliseconds pause_{100};
};

// What results.jsonl lacks of jobs that are done or have failed: a process was killed in between, a larger
// grid calls a run by another name or has runs below a trunk that has failed before.
void complete_results(const SweepQueue& queue, const Options& options, const Sweep& sweep) {
    std::map<std::string, nlohmann::ordered_json> known;
    for (const nlohmann::ordered_json& record : read_results(results_path(options)))
        if (record.contains("job")) known[record["job"].get<std::string>()] = record;
    const std::vector<JobStatus> status = queue.status();
    for (size_t i = 0; i < status.size(); ++i) {
        const SweepJob& job = sweep.plan.jobs[i];
        if (job.run < 0) continue;
        const std::string& name = sweep.plan.runs[job.run].name;
        const auto record = known.find(job.id);
        if (status[i].state == JobState::failed && (record == known.end() || record->second["run"] != name)) {
            const std::string reason = status[i].reason.empty() ? "its trunk failed" : status[i].reason;
            append_result(results_path(options), failure_record(sweep, options, static_cast<int>(i), reason));
        } else if (status[i].state == JobState::done && record == known.end()) {
            queue.forget_done(static_cast<int>(i));  // its last checkpoint makes the record again
        } else if (status[i].state == JobState::done && record->second["run"] != name) {
            record->second["run"] = name;
            append_result(results_path(options), record->second);
        }
    }
}

// By rank 0, before any worker begins.
void prepare(const SweepQueue& queue, const Options& options, const Sweep& sweep) {
    queue.clear_claims(options.retry_failed);
    complete_results(queue, options, sweep);
    // A trunk whose checkpoint was removed after its last branch, and which a larger grid needs again. Its
    // own trunk may be gone too.
    for (bool changed = true; changed;) {
        changed = false;
        for (int trunk : queue.trunks_to_start_from()) {
            if (is_checkpoint(checkpoint_of(options.output_directory, sweep.plan, trunk))) continue;
            remove_checkpoints(trunk_directory(options.output_directory, sweep.plan, trunk));
            queue.forget_done(trunk);
            changed = true;
        }
    }
}

}  // namespace

bool run_sweep(const std::vector<std::string>& arguments, const Options& options, World& world,
               const SweepWork& work) {
    Team team;
    Sweep sweep;
    world.run_together([&] {
        team = world.team(options.sweep_ranks);
        sweep = plan_all_runs(arguments, options, work);
    });
    if (world.rank() == 0) std::cout << format_sweep_plan(sweep.plan) << std::flush;
    if (options.plan_only) return true;

    std::optional<SweepQueue> queue;
    world.run_on_rank_0([&] {
        // Until all ranks have ended: one that is interrupted must not let another sweep in.
        world.keep(std::make_shared<SweepLock>(options.output_directory));
        queue.emplace(options.output_directory, sweep.plan);
        prepare(*queue, options, sweep);
    });
    if (!queue) queue.emplace(options.output_directory, sweep.plan);

    std::ostream nowhere(nullptr);
    std::ostream& log = world.rank() == 0 ? std::cout : nowhere;
    std::unique_ptr<Backend> backend;
    world.run_together([&] {
        const int64_t rows = run_layout(options, team.size).batch * options.sequence_length;
        backend = world.make_backend(options, rows, options.output_directory, log);
    });
    const std::unique_ptr<Communicator> communicator = world.connect(team, *backend);
    const std::string name =
        team.size == 1 ? "rank " + std::to_string(world.rank()) : "team " + std::to_string(team.number);
    Worker worker(sweep, options, *queue, *backend, *communicator, work, name);
    std::optional<ProgressPrinter> printer;
    if (world.rank() == 0) printer.emplace(*queue);
    bool finished = false;
    end_job_on_failure(world, [&] { finished = worker.run(); });
    printer.reset();
    log << "\n"
        << format_progress(sweep.plan, view_of(*queue)) << "results  " << options.output_directory
        << "/results.jsonl\n"
        << (finished ? "" : "interrupted; the same command goes on\n") << std::flush;
    return finished;
}

}  // namespace train_qat
