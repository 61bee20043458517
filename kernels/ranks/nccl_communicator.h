// Ranks with one CUDA device each, connected by NCCL. Free of CUDA, for hosts' source files.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"

namespace train_qat {

// Names one group of ranks. Rank 0 makes it, and it comes to the others outside NCCL: by MPI, or by
// share_by_file (kernels/ranks/rendezvous.h).
struct NcclId {
    std::array<char, 128> bytes{};
};

// "" or, in one line, why this program has no NCCL.
std::string nccl_unavailable();

// std::runtime_error with that line.
NcclId new_nccl_id();

// All ranks call it together, each with a CUDA backend on a device of its own, and it returns when all have.
// The backend must outlive the communicator. RankError when a rank has not come, or later has not taken part,
// for timeout_seconds; std::runtime_error when NCCL refuses, with its reason, or is not there;
// std::logic_error for another kind of backend.
//
//  * Collectives run on a stream of their own. They may stand in Backend::replay when they, and the wait()
//    for them, stand in the same record. gather_on_host and barrier may not; they also wait for what was
//    enqueued on the backend before.
//  * Sums: NCCL's ring, whose order depends on the connection and on sizes alone. NCCL_ALGO overrides it.
//  * Connection and collectives are non-blocking on the host (NCCL_COMM_BLOCKING=1 overrides that), and a
//    watchdog (kernels/ranks/watchdog.h) sees to it that a rank that has died ends the others.
std::unique_ptr<Communicator> make_nccl_communicator(Backend& backend, int rank, int size, const NcclId& id,
                                                     double timeout_seconds);

}  // namespace train_qat
