// Hopper's barriers in the shared memory of the running block (mbarrier), and its named barriers (bar.sync and
// bar.arrive with an id). Threads that wait are suspended until the barrier opens, so endless waiting is found at once.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

class Block;

// A phase ends when `pending` arrivals and `bytes` (those announced minus those landed, which may come first) are both
// zero; then the next begins, with `count` arrivals to come.
class Barriers {
  public:
    void start_block(Block& block);

    // ---- of the running thread; each fails the launch when something is wrong
    void init(const void* barrier, int count, const Location& location);
    void publish();  // the running thread's fence: copies may land on the barriers that it made
    void arrive(const void* barrier, int64_t bytes, const Location& location);
    void wait(const void* barrier, uint32_t parity, const Location& location);

    // A copy is to land on the barrier: its place, for land(), and the phase that it belongs to.
    struct Ticket {
        int64_t barrier;
        uint64_t phase;
    };
    Ticket ticket(const void* barrier, const Location& location);
    // Bytes have landed: "" or what is wrong with that.
    std::string land(const Ticket& ticket, int64_t bytes);

    // "for the barrier at ...: ..." of a thread that waits there.
    std::string describe(int64_t barrier, uint32_t parity) const;

  private:
    struct Barrier {
        int count = 0, pending = 0;
        int64_t bytes = 0;
        uint64_t phase = 0;
        uint32_t maker = 0;
        bool published = false;
        std::vector<uint32_t> waiting;  // threads
        char token = 0;                 // for the thread sanitizer
    };
    Barrier& find(const void* barrier, const char* what, const Location& location);
    void open_if_complete(Barrier& barrier);
    std::string name_of(int64_t barrier) const;

    Block* block_ = nullptr;
    std::map<int64_t, Barrier> barriers_;  // by offset in shared memory
};

class NamedBarriers {
  public:
    void start_block(Block& block);
    // The running thread's warp arrives, as a whole; sync: it waits for the others too.
    void meet(int id, int threads, bool sync, const Location& location);
    std::string describe(int64_t id) const;
    // At the end of a block: "" or which barrier some warps have arrived at in vain.
    std::string left_over(Location& location) const;

  private:
    struct Named {
        int threads = 0, arrived = 0;
        uint64_t opened = 0;
        Location location;
        std::vector<uint32_t> waiting;
        char token = 0;
    };
    void arrive(int id, int threads, const Location& location);

    Block* block_ = nullptr;
    std::array<Named, 16> named_;
    std::array<uint64_t, 32> turn_;  // of each warp: `opened` when it arrived
};

}  // namespace train_qat::emulator
