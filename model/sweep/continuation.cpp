#include "model/sweep/continuation.h"

#include <map>

#include "model/storage/checkpoint.h"

namespace train_qat {

namespace {

// What results.jsonl lacks of jobs that are done or have failed: a process was killed in between, the file
// was lost, a larger grid calls a run by another name or has runs below a trunk that has failed before.
void complete_results(const SweepQueue& queue, const Sweep& sweep) {
    std::map<std::string, nlohmann::ordered_json> known;
    for (const nlohmann::ordered_json& record : read_results(results_path(sweep)))
        if (record.contains("job")) known[record["job"].get<std::string>()] = record;
    const std::vector<JobStatus> status = queue.status();
    for (size_t i = 0; i < status.size(); ++i) {
        const int leaf = static_cast<int>(i);
        const SweepJob& job = sweep.plan.jobs[i];
        if (job.run < 0) continue;
        const std::string& name = sweep.plan.runs[job.run].name;
        const auto record = known.find(job.id);
        if (status[i].state == JobState::failed && (record == known.end() || record->second["run"] != name)) {
            const std::string reason = status[i].reason.empty() ? "its trunk failed" : status[i].reason;
            append_result(results_path(sweep), failure_record(sweep, leaf, reason));
        } else if (status[i].state == JobState::done && record == known.end()) {
            queue.forget_done(leaf);  // its last checkpoint makes the record again
        } else if (status[i].state == JobState::done && record->second["run"] != name) {
            record->second["run"] = name;
            append_result(results_path(sweep), record->second);
        }
    }
}

// Jobs that start from a trunk whose checkpoint was removed after its last branch: a larger grid has them.
// Not those that go on from a checkpoint of their own. The trunk's own trunk may be gone too.
void train_missing_trunks_again(const SweepQueue& queue, const Sweep& sweep) {
    const auto lacks_checkpoint = [&](int job) {
        return !find_latest_checkpoint(directory_of_job(sweep, job));
    };
    for (bool changed = true; changed;) {
        changed = false;
        for (const int trunk : queue.trunks_to_start_from(lacks_checkpoint)) {
            if (is_checkpoint(end_of_trunk(sweep, trunk))) continue;
            remove_checkpoints(directory_of_job(sweep, trunk));
            queue.forget_done(trunk);
            changed = true;
        }
    }
}

}  // namespace

void continue_sweep(const SweepQueue& queue, const Sweep& sweep) {
    queue.clear_claims(sweep.options.retry_failed);
    for (size_t job = 0; job < sweep.plan.jobs.size(); ++job)
        clean_up_after_dead_runs(directory_of_job(sweep, static_cast<int>(job)));
    complete_results(queue, sweep);
    train_missing_trunks_again(queue, sweep);
}

}  // namespace train_qat
