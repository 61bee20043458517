// A team of ranks that trains one job of a sweep after another.
#pragma once

#include <chrono>
#include <ostream>
#include <string>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/run/outcome.h"
#include "model/sweep/jobs.h"
#include "model/sweep/queue.h"

namespace train_qat {

class Worker {
  public:
    // On each rank of the team that the communicator connects. name: for people, in claims and tables.
    Worker(const Sweep& sweep, const SweepQueue& queue, Backend& backend, Communicator& communicator,
           const TrainFunction& train, const std::string& name);

    // Until no job is left. False when it was interrupted. A job that fails is recorded; an error that other
    // ranks of the team have not heard of is thrown.
    bool run();

  private:
    bool leads() const { return communicator_.rank() == 0; }
    const SweepJob& job_of(int job) const { return sweep_.plan.jobs[job]; }
    int next_job();
    int claim();
    bool data_is_as_before(int job) const;
    bool run_job(int job);
    StepObserver observer(int job) const;
    void give_back(int job) const;
    void finish(int job, const RunOutcome& trained) const;
    void fail(int job, const std::string& reason, std::ostream& log) const;
    void say(const char* what, int job, const std::string& more) const;
    void remove_used_trunks() const;

    const Sweep& sweep_;
    const SweepQueue& queue_;
    Backend& backend_;
    Communicator& communicator_;
    const TrainFunction& train_;
    const std::string name_;
    std::chrono::milliseconds pause_{100};  // before the queue is asked again
};

}  // namespace train_qat
