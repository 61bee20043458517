// How far a sweep is: small files that workers write beside their claims, and the table made of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/sweep/queue.h"

namespace train_qat {

struct JobProgress {
    int64_t step = 0;  // optimizer steps of the run done, from its step 0
    double loss = 0;
    double tokens_per_second = 0;
};

// Replaces QUEUE/ID.progress; readers see the old or the new text. It is no record: nothing is flushed to the
// disk, and a write that fails is not reported. Once a second is often enough.
void write_progress(const std::string& queue_directory, const SweepJob& job, const JobProgress& progress);

// Nothing where there is no readable file: the job has not reported yet.
std::optional<JobProgress> read_progress(const std::string& queue_directory, const SweepJob& job);

// Where each job of a sweep is; `progress` only of running ones.
struct JobView {
    JobStatus status;
    std::optional<JobProgress> progress;
};
std::vector<JobView> view_of(const SweepQueue& queue);

struct SweepEstimate {
    double total = 0;      // FLOPs of all jobs but unneeded ones
    double done = 0;       // of them
    double remaining = 0;  // of jobs that have not failed
    double longest = 0;    // of the longest chain of jobs that remains
    double rate = 0;       // FLOPs a second of all workers now
    int workers = 0;       // that have reported a rate
    // remaining / rate, but no less than the longest chain takes one worker; nothing while no rate is known.
    std::optional<double> seconds_left;
};
SweepEstimate estimate(const SweepPlan& plan, const std::vector<JobView>& jobs);

// At most `lines` lines (>= 6) with a newline each:
//   sweep [#########-----------]  45.2%  12 done, 4 running, 1 failed, 31 waiting  ETA 1h02m
//     job               worker           step     loss      tok/s       ETA
//     b4_f0.2_fused     rank 0      1200/3000   3.4512     12,345     3m12s
//     ... and 3 more
//     failed: b2_f0.1 (loss is not finite at step 70)
std::string format_progress(const SweepPlan& plan, const std::vector<JobView>& jobs, int lines = 20);

}  // namespace train_qat
