// The jobs of a sweep, handed to workers through files, so that no process coordinates them: ranks of MPI and
// workers on several machines with one file system take jobs alike.
//
// OUTPUT/queue holds, named by the id of a job (see model/sweep/plan.h):
//   ID.claim     created exclusively by the worker that trains it: worker, host, process, time
//   ID.done      it is finished, and by which validation loss; survives restarts and changes of the grid
//   ID.failed    it can't be finished, and why; survives restarts unless failed jobs are to be tried again
//   ID.progress  how far it is (model/sweep/progress.h)
//   stop         a worker was interrupted: all are to end
// A claim stays until the next sweep starts, or until an interrupted worker gives it back: a job is trained
// once in a sweep, however late a worker hears of it over a network.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/storage/files.h"
#include "model/sweep/plan.h"

namespace train_qat {

enum class JobState {
    waiting,
    running,
    done,
    failed,
    unneeded  // a trunk segment of which all that starts from it is done or failed
};

struct JobStatus {
    JobState state = JobState::waiting;
    std::string worker;                     // of a claim
    std::optional<double> validation_loss;  // of a finished run
    std::string reason;                     // of a failure
};

// Safe to use from several threads and processes at once. Every function throws std::runtime_error when the
// file system refuses.
class SweepQueue {
  public:
    // Creates OUTPUT/queue.
    SweepQueue(const std::string& output_directory, const SweepPlan& plan);

    // By the one process that holds the lock, before any worker claims: removes what an interrupted sweep
    // left, and with `retry_failed` its failures.
    void clear_claims(bool retry_failed = false) const;

    // The ready job with the largest path_cost: it is needed, its parent is done, and nobody has claimed it.
    // It is now this worker's. Nothing: no job is ready now; see finished().
    std::optional<int> claim(const std::string& worker) const;

    // By the worker that claimed it, when it ends before the job does: another one may go on with it.
    void release(int job) const;

    // All workers are to end after the step that they are at; until clear_claims().
    // reason: an error that all end with; empty: none, someone has asked for it.
    void request_stop(const std::string& reason = "") const;
    bool stop_requested() const;
    std::string stop_reason() const;  // of the first who requested it

    // No job is left that could still run: all are done, failed, or not needed. False while others train.
    bool finished() const;

    // By the worker that claimed it. A trunk segment must be saved, and a run's result recorded, before.
    void done(int job, std::optional<double> validation_loss = std::nullopt) const;

    // By the worker that claimed it. All jobs that start from it fail too. Returns the runs that will have no
    // result, each with the reason to record.
    struct FailedRun {
        int run;
        std::string reason;
    };
    std::vector<FailedRun> failed(int job, const std::string& reason) const;

    // Finished trunk segments whose checkpoints waiting jobs start from, those for which `starts` holds. By
    // the process that holds the lock, before any worker claims: one whose checkpoint turns out to be gone is
    // trained again after forget_done.
    std::vector<int> trunks_to_start_from(const std::function<bool(int job)>& starts) const;
    void forget_done(int job) const;

    // All jobs. `details`: also reads what the files say, not only which there are.
    std::vector<JobStatus> status(bool details = true) const;

    const std::string& directory() const { return directory_; }
    const SweepPlan& plan() const { return plan_; }

  private:
    std::string file(int job, const char* kind) const;
    std::string stop_path() const { return directory_ + "/stop"; }
    bool ready(const std::vector<JobStatus>& jobs, size_t job) const;

    std::string directory_;
    SweepPlan plan_;
    std::vector<int> by_priority_;  // jobs, most expensive path first
};

}  // namespace train_qat
