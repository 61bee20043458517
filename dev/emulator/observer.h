// Sees every access of the running block's threads: checks it, looks for races, records it. Also keeps the
// asynchronous copies of each thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dev/emulator/access_log.h"
#include "dev/emulator/emulator.h"
#include "dev/emulator/machine/global_memory.h"
#include "dev/emulator/machine/races.h"
#include "dev/emulator/machine/shared_memory.h"
#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

// A cp_async_16 that has not been waited for.
struct AsyncCopy {
    unsigned char* shared;
    const unsigned char* global;
    int valid, group;
    Location location;
};

// "0x..."
std::string address_text(const void* address);
// What an access of so many bytes must be a multiple of.
constexpr int64_t alignment_of(int64_t bytes) {
    const int64_t largest_power = bytes & -bytes;
    return largest_power < 16 ? largest_power : 16;
}

class Observer {
  public:
    // log: null, unless the launch is recorded.
    void start_block(const Settings& settings, AccessLog* log, int64_t block, int64_t threads,
                     int64_t dynamic_bytes);
    bool observes() const { return settings_->checked || settings_->check_races || log_ != nullptr; }

    // ---- of the running thread; each fails the launch when something is wrong
    void global(const void* address, int bytes, Access access, const Location& location);
    void shared(const void* address, int bytes, Access access, const Location& location);
    void ldmatrix(const void* row, const Location& location);
    void flops(int64_t flops, const Location& location);
    // Of bulk copies and wgmma, whose own rules are theirs to check.
    void bulk_shared(const void* address, int64_t bytes, Access access, const Location& location);
    void bulk_global(const void* address, int64_t bytes, Access access, const Location& location);
    void bulk_add(const void* address, int64_t bytes, const Location& location);
    void check_fenced(int64_t offset, int64_t bytes, const char* reader, const Location& location);
    void start_copy(void* shared, const void* global, int valid, const Location& location);
    void close_group();
    // The oldest copy of a group that must be complete now, for the caller to make; false: there is none.
    bool next_due_copy(int pending, AsyncCopy& copy);
    void* variable(const void* tag, const char* name, int64_t bytes, int64_t alignment,
                   const Location& location);
    void* dynamic_shared_memory() { return shared_memory_.dynamic(); }

    // ---- what orders accesses
    void barrier(std::vector<Warp>& warps);
    void warp_meets(Warp& warp, uint32_t index, Ordering ordering);
    void some_order();
    void warp_ends(uint32_t index);
    static void start_launch();

    void thread_waits() { accesses_ = 0; }
    SharedMemory& shared_memory() { return shared_memory_; }
    std::string place_of(const void* address) const;                 // for messages
    int64_t shared_bytes() const { return shared_memory_.bytes(); }  // of the block so far

  private:
    struct Copies {
        std::vector<AsyncCopy> open;
        int closed_groups = 0;
        size_t done = 0;  // of `open`
    };
    bool plain(const void* address, int64_t bytes);
    Allocation* check_global(const void* address, int64_t bytes, Access access, const Location& location);
    void check_shared(const void* address, int64_t bytes, Access access, const Location& location);
    void note_store(int64_t offset, int64_t bytes);
    [[noreturn]] void explain(const void* address, int64_t bytes, const char* what, const Location& location);
    [[noreturn]] void explain_global(const void* address, int64_t bytes, Access access,
                                     const Location& location);
    [[noreturn]] void explain_shared(const void* address, int64_t bytes, Access access,
                                     const Location& location);
    void race_global(Allocation* allocation, const void* address, int64_t bytes, Access access,
                     const Location& location);
    void race_shared(const void* address, int64_t bytes, Access access, const Location& location);
    [[noreturn]] void fail_race(const Race& race, Access access, const std::string& what,
                                const Location& location);
    Copies& copies();

    const Settings* settings_ = nullptr;
    AccessLog* log_ = nullptr;
    SharedMemory shared_memory_;
    AllocationCache allocations_;
    std::vector<Copies> copies_;  // by thread
    Order order_;
    int64_t accesses_ = 0;
};

}  // namespace train_qat::emulator
