// What ranks do with one another's numbers. Ranks are the processes of one job, numbered from 0, each with a
// backend of its own; a communicator connects them. Three implementations with the same semantics:
//   * single: one rank, nothing to do                             single_communicator.cpp
//   * MPI, for memory that the host can address: the CPU backend  mpi_communicator.cpp
//   * NCCL, for memory of CUDA devices                            nccl_communicator.cu
//
// Conventions
//  * Collectives: all ranks make the same calls in the same order, with arrays of the same sizes.
//  * reduce_scatter, all_gather, all_reduce and broadcast take memory of the backend, in place. They start
//    after the operations that were enqueued on the backend before, and run beside those enqueued later, in
//    order among themselves. Their arrays must not be touched until wait(): what is enqueued on the backend
//    after it sees the results. That is how communication overlaps with a backward pass.
//  * gather_on_host and barrier take host memory or nothing, and return when they are done.
//  * Sums are formed in an order that depends on nothing but the number of ranks: same ranks, same bits.
//  * A rank that does not take part in time ends the job: RankError on all the others, never a hang.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace train_qat {

// Other ranks are gone, late, or out of step: the job cannot go on.
class RankError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// The rows of every array are divided among ranks the same way: rank r of `ranks` has the rows
// [first_row(rows, r, ranks), first_row(rows, r + 1, ranks)). Fewer rows than ranks leave some without any.
inline int64_t first_row(int64_t rows, int rank, int ranks) {
    return rows * rank / ranks;
}

// A whole array, (rows, row_bytes), row after row.
struct RankRows {
    void* data = nullptr;
    int64_t rows = 0;
    int64_t row_bytes = 0;
};

// Bytes that rank `rank` of `size` sends to others in these collectives.
int64_t reduce_scatter_bytes(std::span<const RankRows> arrays, int rank, int size);
int64_t all_gather_bytes(std::span<const RankRows> arrays, int rank, int size);

// Bytes that this rank has sent to others; of a record that is replayed (Backend::replay) only the first
// time.
struct Traffic {
    int64_t reduce_scatter = 0, all_gather = 0, broadcast = 0;
    int64_t total() const { return reduce_scatter + all_gather + broadcast; }
};

class Communicator {
  public:
    Communicator(int rank, int size) : rank_(rank), size_(size) {}
    virtual ~Communicator() = default;
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }

    // float32 arrays: each rank's own rows become the sums over all ranks; the others' are left undefined.
    void reduce_scatter(std::span<const RankRows> arrays);
    // Any bytes: every rank's own rows come to all.
    void all_gather(std::span<const RankRows> arrays);
    // float32, any shape: sums over all ranks. A reduce_scatter and an all_gather of its elements.
    void all_reduce(const Tensor& values);
    void broadcast(void* data, int64_t bytes, int root);
    // See above. Throws RankError where it can tell that a collective has failed.
    void wait();

    // data: (size, bytes) in host memory, of which this rank has written row `rank`; returns with all rows.
    void gather_on_host(void* data, int64_t bytes);
    // Returns when all ranks have called it.
    void barrier();

    // Whether the calls above that take the backend's memory may stand in Backend::replay.
    virtual bool recordable() const = 0;
    virtual std::string describe() const = 0;  // one line: "4 ranks over MPI (Open MPI 4.1.4)"

    const Traffic& traffic() const { return traffic_; }

  private:
    virtual void start_reduce_scatter(std::span<const RankRows> arrays) = 0;
    virtual void start_all_gather(std::span<const RankRows> arrays) = 0;
    virtual void start_broadcast(void* data, int64_t bytes, int root) = 0;
    virtual void order_after() = 0;
    virtual void gather_host_rows(void* data, int64_t bytes) = 0;

    const int rank_, size_;
    Traffic traffic_;
};

std::unique_ptr<Communicator> make_single_communicator();

// One double of each rank, in the order of ranks.
std::vector<double> gather_numbers(Communicator& communicator, double mine);
// One text of each rank, of up to 1,000 bytes; longer ones are cut off.
std::vector<std::string> gather_texts(Communicator& communicator, const std::string& mine);

}  // namespace train_qat
