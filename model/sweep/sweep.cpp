#include "model/sweep/sweep.h"

#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/job/failure.h"
#include "model/job/stop_signal.h"
#include "model/storage/checksum.h"
#include "model/storage/files.h"
#include "model/sweep/continuation.h"
#include "model/sweep/jobs.h"
#include "model/sweep/progress.h"
#include "model/sweep/progress_printer.h"
#include "model/sweep/queue.h"
#include "model/sweep/run_planner.h"
#include "model/sweep/shard_record.h"
#include "model/sweep/worker.h"

namespace train_qat {

namespace {

// Ranks that take jobs from one queue must mean the same by them.
void check_ranks_plan_alike(Job& job, const SweepPlan& plan) {
    std::string ids;
    for (const SweepJob& planned : plan.jobs) ids += planned.id;
    const std::string mine = checksum_text(checksum_of(ids));
    const std::string of_rank_0 = job.text_of_rank_0(mine);
    job.run_together([&] {
        if (mine != of_rank_0)
            throw std::runtime_error(
                "-sweep: would train other runs than rank 0: start all ranks with the same flags and data, "
                "on like machines");
    });
}

}  // namespace

bool run_sweep(const std::vector<std::string>& arguments, const Options& options, Job& job,
               const TrainFunction& train) {
    std::ostream nowhere(nullptr);
    std::ostream& console = job.rank() == 0 ? std::cout : nowhere;
    const Team team = job.run_together([&] { return job.team(options.sweep_ranks); });
    const std::unique_ptr<Backend> backend =
        job.run_together([&] { return job.make_backend(options, team.size, console); });
    const Sweep sweep = job.run_together([&] { return plan_runs(arguments, options, *backend, console); });
    console << format_sweep_plan(sweep.plan) << std::flush;
    if (options.plan_only) return true;

    check_ranks_plan_alike(job, sweep.plan);
    job.run_on_rank_0([&] {
        const SweepQueue begun(options.output_directory, sweep.plan);
        record_shards(sweep, console);
        continue_sweep(begun, sweep);
    });
    const SweepQueue queue(options.output_directory, sweep.plan);

    const std::unique_ptr<Communicator> communicator = job.connect(team, *backend);
    const std::string name =
        team.size == 1 ? "rank " + std::to_string(job.rank()) : "team " + std::to_string(team.number);
    Worker worker(sweep, queue, *backend, *communicator, train, name);
    std::optional<ProgressPrinter> printer;
    if (job.rank() == 0) printer.emplace(queue);
    save_on_stop_signals();
    const bool finished = end_job_on_failure(job, [&] { return worker.run(); });
    printer.reset();
    console << "\n"
            << format_progress(sweep.plan, view_of(queue)) << "results  " << results_path(sweep) << std::endl;
    const std::string reason = finished ? "" : queue.stop_reason();
    if (!reason.empty()) throw JointError(reason);
    if (!finished) console << "interrupted; the same command goes on" << std::endl;
    return finished;
}

}  // namespace train_qat
