// Ranks that MPI has started, and their communicator for memory that the host can address. Free of MPI's
// headers; mpi_absent.cpp stands in where MPI is not installed.
#pragma once

#include <memory>
#include <string>

#include "kernels/ranks/communicator.h"

namespace train_qat {

// "" or why this program cannot use MPI.
std::string mpi_unavailable();

// From MPI_Init to MPI_Finalize; at most one in a process. std::runtime_error when MPI cannot start.
class MpiSession {
  public:
    MpiSession();
    ~MpiSession();
    MpiSession(const MpiSession&) = delete;
    MpiSession& operator=(const MpiSession&) = delete;

    // All ranks of the job. Collectives that take longer than `timeout_seconds` throw RankError, which names
    // the ranks that did not take part.
    std::unique_ptr<Communicator> communicator(double timeout_seconds) const;
    // The ranks that give the same `group`, in the order of their ranks. All ranks of the job call it.
    std::unique_ptr<Communicator> group_communicator(int group, double timeout_seconds) const;

    // Ends all processes of the job with this exit code.
    [[noreturn]] void abort(int exit_code) const;
};

}  // namespace train_qat
