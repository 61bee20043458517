// This process as one rank of a job: how it was started, its device, and what connects it with the others.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/ranks/agreement.h"
#include "kernels/ranks/communicator.h"
#include "kernels/ranks/launch.h"
#include "kernels/ranks/mpi_communicator.h"
#include "model/run/options.h"

namespace train_qat {

// Ranks that train one model together: consecutive ones of the job.
struct Team {
    int number = 0;  // of teams
    int rank = 0, size = 1;
};

class Job {
  public:
    // Starts MPI where it started this process. std::runtime_error for a launch that the program cannot
    // serve: in one line, with what to do.
    explicit Job(const Options& options);

    int rank() const { return launch_.rank; }
    int size() const { return launch_.size; }

    // The team of this rank when each has `size` ranks; it must divide the number of ranks.
    Team team(int size) const;

    // The device of this rank, which is said on `log`. Choices made by timing are those for matmuls of a run
    // on `ranks` ranks, and are kept in -o.
    std::unique_ptr<Backend> make_backend(const Options& options, int ranks, std::ostream& log) const;

    // Connects the ranks of a team; each calls it once for a backend.
    std::unique_ptr<Communicator> connect(const Team& team, Backend& backend);

    // run_together, run_on_rank_0 and text_of_rank_0 (kernels/ranks/agreement.h) over all ranks of the job.
    // Where no MPI connects them, run_together leaves each rank to itself.
    template <typename Function>
    auto run_together(Function&& function) {
        if (!connected()) return function();
        return train_qat::run_together(*everyone_, function);
    }
    void run_on_rank_0(const std::function<void()>& function);
    std::string text_of_rank_0(const std::string& text);

    // Kept until all ranks of the job have ended, where MPI connects them.
    void keep(std::shared_ptr<void> object) { kept_.push_back(std::move(object)); }

    // Ends all processes of the job.
    [[noreturn]] void abort(int exit_code) const;

  private:
    // Whether all ranks can talk before they have devices.
    bool connected() const { return mpi_ != nullptr || launch_.size == 1; }
    // What rank 0 makes, on all ranks, through a file.
    std::string share(const std::function<std::string()>& make);
    std::unique_ptr<Communicator> connect_devices(const Team& team, Backend& backend, Communicator* host);

    int cpu_threads(const Options& options) const;

    const Options options_;
    Launch launch_;
    std::vector<std::shared_ptr<void>> kept_;  // before mpi_, which waits for the others at its end
    std::unique_ptr<MpiSession> mpi_;
    std::unique_ptr<Communicator> everyone_;  // over MPI, or single
    int meetings_ = 0;                        // by files, so far
};

}  // namespace train_qat
