#include "model/sweep.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "model/manifest.h"
#include "model/metrics.h"
#include "model/program.h"
#include "model/sweep_grid.h"
#include "model/sweep_progress.h"
#include "model/sweep_queue.h"
#include "model/sweep_results.h"
#include "model/text.h"
#include "model/together.h"

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
        for (int job = next_job(); job != no_job; job = next_job())
            if (!run_job(job)) return false;
        return !interrupted_;
    }

  private:
    static constexpr int no_job = -1;

    bool leads() const { return communicator_.rank() == 0; }
    const SweepJob& job_of(int job) const { return sweep_.plan.jobs[job]; }

    // The team's first rank takes it.
    int next_job() {
        double job = no_job;
        if (leads()) job = claim();
        job = gather_numbers(communicator_, job)[0];
        return static_cast<int>(job);
    }

    int claim() {
        constexpr auto pause = std::chrono::milliseconds(200);
        while (true) {
            if (work_.stop_requested()) {
                interrupted_ = true;
                return no_job;
            }
            if (const std::optional<int> job = queue_.claim(name_)) return *job;
            if (queue_.finished()) return no_job;
            std::this_thread::sleep_for(pause);
        }
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
        if (description.run < 0) own.until = description.end_step;
        if (description.parent >= 0)
            own.from = checkpoint_of(options_.output_directory, sweep_.plan, description.parent);
        return own;
    }

    // False when it was interrupted.
    bool run_job(int job) {
        const Options own = options_of(job);
        std::ofstream log;
        if (leads()) {
            fs::create_directories(own.output_directory);
            log.open(own.output_directory + "/log.txt", std::ios::app);
        }
        try {
            const TrainingOutcome outcome =
                work_.train(own, backend_, communicator_, log, leads() ? observer(job) : StepObserver());
            if (!outcome.finished) return false;
            if (leads()) finish(job, own, outcome);
        } catch (const RankError&) {
            throw;
        } catch (const std::runtime_error& error) {
            // Of several ranks one that fails alone leaves the others waiting for it.
            if (communicator_.size() > 1 && dynamic_cast<const JointError*>(&error) == nullptr) throw;
            log << "failed: " << error.what() << std::endl;
            if (leads()) fail(job, error.what());
        }
        return true;
    }

    StepObserver observer(int job) const {
        return [this, job, last = Clock::time_point()](int64_t step, double loss, double rate) mutable {
            constexpr auto interval = std::chrono::seconds(1);
            if (Clock::now() - last < interval) return;
            last = Clock::now();
            write_progress(queue_.directory(), job_of(job), {step, loss, rate});
        };
    }

    SweepOutcome outcome_of(int run, int job) const {
        const Options& own = sweep_.runs[run];
        SweepOutcome outcome;
        outcome.run = sweep_.plan.runs[run].name;
        outcome.job = job_of(job).id;
        outcome.asked_fraction = own.plan.qat_fraction;
        outcome.asked_cooldown = own.plan.cooldown;
        outcome.seed = own.seed;
        outcome.plan = sweep_.plan.runs[run].plan;
        outcome.trained_steps = job_of(job).end_step - job_of(job).first_step;
        outcome.shared_steps = job_of(job).first_step;
        outcome.directory = run_directory(options_.output_directory, sweep_.plan, job);
        return outcome;
    }

    std::string results_path() const { return options_.output_directory + "/results.jsonl"; }

    void finish(int job, const Options& own, const TrainingOutcome& trained) {
        std::optional<double> loss;
        const int run = job_of(job).run;
        if (run >= 0) {
            SweepOutcome outcome = outcome_of(run, job);
            outcome.results = trained.results;
            outcome.seconds = trained.seconds;
            loss = final_validation_loss(outcome.plan, outcome.results);
            append_result(results_path(), result_record(outcome));
        }
        queue_.done(job, loss);
        say("done", job,
            (loss ? formatted(", validation loss %.4f", *loss) : std::string()) + ", " +
                format_duration(trained.seconds));
        if (own.keep > 0) remove_used_trunks();
    }

    void fail(int job, const std::string& reason) {
        for (const SweepQueue::FailedRun& failed : queue_.failed(job, reason)) {
            SweepOutcome outcome = outcome_of(failed.run, leaf_of(failed.run));
            outcome.failure = failed.reason;
            append_result(results_path(), result_record(outcome));
        }
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

    // Checkpoints from which everything has branched off. Other workers may be at the same.
    void remove_used_trunks() const {
        const std::vector<JobStatus> status = queue_.status(false);
        std::vector<bool> used(status.size(), false);
        for (size_t job = 0; job < status.size(); ++job) {
            const bool open =
                status[job].state == JobState::waiting || status[job].state == JobState::running;
            if (open && job_of(static_cast<int>(job)).parent >= 0)
                used[job_of(static_cast<int>(job)).parent] = true;
        }
        for (size_t job = 0; job < status.size(); ++job) {
            const auto trunk = static_cast<int>(job);
            if (job_of(trunk).run >= 0 || used[job] || status[job].state != JobState::done) continue;
            std::error_code ignored;
            fs::remove_all(checkpoint_of(options_.output_directory, sweep_.plan, trunk), ignored);
        }
    }

    const Sweep& sweep_;
    const Options& options_;
    const SweepQueue& queue_;
    Backend& backend_;
    Communicator& communicator_;
    const SweepWork& work_;
    const std::string name_;
    bool interrupted_ = false;
};

// By rank 0, before any worker begins.
void prepare(const SweepQueue& queue, const Options& options, const SweepPlan& plan) {
    queue.clear_claims(options.retry_failed);
    // A trunk whose checkpoint was removed after its last branch, and which a larger grid needs again. Its
    // own trunk may be gone too.
    for (std::vector<int> trunks = queue.trunks_to_start_from(); !trunks.empty();) {
        bool changed = false;
        for (int trunk : trunks) {
            if (has_manifest(checkpoint_of(options.output_directory, plan, trunk))) continue;
            queue.forget_done(trunk);
            changed = true;
        }
        if (!changed) break;
        trunks = queue.trunks_to_start_from();
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

    std::optional<SweepLock> lock;
    std::optional<SweepQueue> queue;
    world.run_on_rank_0([&] {
        lock.emplace(options.output_directory);
        queue.emplace(options.output_directory, sweep.plan);
        prepare(*queue, options, sweep.plan);
    });
    if (!queue) queue.emplace(options.output_directory, sweep.plan);

    std::ostream nowhere(nullptr);
    std::ostream& log = world.rank() == 0 ? std::cout : nowhere;
    std::unique_ptr<Backend> backend;
    world.run_together([&] { backend = world.make_backend(options, options.output_directory, log); });
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
