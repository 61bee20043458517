#include "dev/emulator/observer.h"

#include <algorithm>
#include <cstring>

#include "dev/emulator/block.h"
#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

// The clock of races.h goes on from launch to launch, so that shadows need no clearing. Blocks run one by one
// while it counts.
struct RaceClock {
    uint64_t now = 1, launch_start = 1;
    // Since when which block has run, in this launch.
    struct Entry {
        uint64_t start;
        int64_t block;
    };
    std::vector<Entry> blocks;
    int64_t block_at(uint64_t time) const {
        const auto after = std::upper_bound(blocks.begin(), blocks.end(), time,
                                            [](uint64_t t, const Entry& entry) { return t < entry.start; });
        return after == blocks.begin() ? 0 : std::prev(after)->block;
    }
};
RaceClock race_clock;

constexpr int copy_bytes = 16;

int64_t address_of(const void* address) {
    return reinterpret_cast<intptr_t>(address);
}

[[noreturn]] void fail(const std::string& text, const Location& location) {
    Block::running()->fail(text, location);
}

}  // namespace

void Observer::start_launch() {
    race_clock.launch_start = ++race_clock.now;
    race_clock.blocks.clear();
}

void Observer::start_block(const Settings& settings, AccessLog* log, int64_t block, int64_t threads,
                           int64_t dynamic_bytes) {
    settings_ = &settings;
    log_ = log;
    if (log_ != nullptr) log_->start_block((threads + warp_size - 1) / warp_size);
    shared_memory_.reset(dynamic_bytes, settings.checked, settings.compute_capability >= 90);
    copies_.resize(static_cast<size_t>(threads));
    for (Copies& copies : copies_) {
        copies.open.clear();
        copies.closed_groups = 0;
        copies.done = 0;
    }
    accesses_ = 0;
    if (settings.check_races) {
        order_.now = order_.block_start = order_.last_barrier = ++race_clock.now;
        order_.launch_start = race_clock.launch_start;
        race_clock.blocks.push_back({order_.now, block});
    }
}

// ---- order

void Observer::barrier(std::vector<Warp>& warps) {
    if (log_ != nullptr)
        for (uint32_t w = 0; w < warps.size(); ++w) log_->close(w);
    if (!settings_->check_races) return;
    order_.now = order_.last_barrier = ++race_clock.now;
    for (Warp& warp : warps) warp.last_sync = order_.now;
}

void Observer::warp_meets(Warp& warp, uint32_t index, Ordering ordering) {
    if (log_ != nullptr) log_->close(index);
    if (settings_->check_races && ordering == Ordering::memory)
        warp.last_sync = order_.now = ++race_clock.now;
}

// Some of the block's threads are ordered, and which is not kept: as if all were, so races may be missed.
void Observer::some_order() {
    if (settings_->check_races) order_.now = order_.last_barrier = ++race_clock.now;
}

void Observer::warp_ends(uint32_t index) {
    if (log_ != nullptr) log_->close(index);
}

// ---- checks: the quick answer that all is well; explain... (explain.cpp) find out what is not

inline bool Observer::plain(const void* address, int64_t bytes) {
    return ++accesses_ <= settings_->patience && (address_of(address) & (alignment_of(bytes) - 1)) == 0;
}

// Null for host memory, where that is allowed.
inline Allocation* Observer::check_global(const void* address, int64_t bytes, Access access,
                                          const Location& location) {
    Allocation* allocation = allocations_.find(address, bytes, location);
    if (allocation == nullptr || !allocation->contains(address, bytes)) {
        if (allocation == nullptr && settings_->allow_host_memory && !shared_memory_.contains(address))
            return nullptr;
        explain_global(address, bytes, access, location);
    }
    return allocation;
}

inline void Observer::check_shared(const void* address, int64_t bytes, Access access,
                                   const Location& location) {
    const int64_t offset = shared_memory_.offset_of(address);
    if (!shared_memory_.contains(address) ||
        !(access == Access::load ? shared_memory_.all_written(offset, bytes)
                                 : shared_memory_.all_free(offset, bytes)))
        explain_shared(address, bytes, access, location);
}

inline void Observer::note_store(int64_t offset, int64_t bytes) {
    shared_memory_.mark(offset, bytes, SharedMemory::written);
    shared_memory_.note_writer(offset, bytes, Block::running()->thread_number());
}

// ---- races

void Observer::fail_race(const Race& race, Access access, const std::string& what, const Location& location) {
    const Block& block = *Block::running();
    std::string other;
    if (who(race.other) == several_warps)
        other = "threads of several warps";
    else if (who(race.other) >= several_lanes)
        other = "several lanes of warp " + std::to_string(who(race.other) - several_lanes);
    else
        other = "thread " + block.index_of_thread(who(race.other));
    if (time_of(race.other) < order_.block_start)
        other += " of block " + block.index_of_block(race_clock.block_at(time_of(race.other)));
    fail(std::string("race: ") + (access == Access::load ? "reads " : "writes ") + what + ", which " + other +
             (race.other_wrote ? " wrote at " : " read at ") + race.other_location.file_name() + ":" +
             std::to_string(race.other_location.line()) + " with no barrier in between",
         location);
}

void Observer::race_shared(const void* address, int64_t bytes, Access access, const Location& location) {
    Race race;
    const Block& block = *Block::running();
    if (shared_memory_.shadow().access(shared_memory_.offset_of(address), bytes, access,
                                       block.thread_number(), context.warp->last_sync, order_,
                                       order_.block_start, location, race))
        fail_race(race, access, shared_memory_.name_of(address), location);
}

void Observer::race_global(Allocation* allocation, const void* address, int64_t bytes, Access access,
                           const Location& location) {
    if (allocation == nullptr) allocation = allocations_.find(address, bytes, location);
    if (allocation == nullptr) return;
    if (allocation->shadow == nullptr) allocation->shadow = std::make_unique<RaceShadow>(allocation->bytes);
    const int64_t offset = static_cast<const unsigned char*>(address) - allocation->begin;
    Race race;
    if (allocation->shadow->access(offset, bytes, access, Block::running()->thread_number(),
                                   context.warp->last_sync, order_, order_.launch_start, location, race))
        fail_race(race, access, "global memory at " + address_text(address), location);
}

// ---- accesses

void Observer::global(const void* address, int bytes, Access access, const Location& location) {
    Allocation* allocation = nullptr;
    if (settings_->checked) {
        if (!plain(address, bytes))
            explain(address, bytes, access == Access::load ? "global load" : "global store", location);
        allocation = check_global(address, bytes, access, location);
    }
    if (settings_->check_races) race_global(allocation, address, bytes, access, location);
    if (log_ != nullptr)
        log_->add(access == Access::load ? Traffic::load : Traffic::store, Block::running()->warp_number(),
                  context.lane, address_of(address), bytes, location);
}

void Observer::shared(const void* address, int bytes, Access access, const Location& location) {
    if (settings_->checked) {
        if (!plain(address, bytes))
            explain(address, bytes, access == Access::load ? "shared load" : "shared store", location);
        check_shared(address, bytes, access, location);
        if (access == Access::store) note_store(shared_memory_.offset_of(address), bytes);
    }
    if (settings_->check_races) race_shared(address, bytes, access, location);
    if (log_ != nullptr)
        log_->add(Traffic::shared, Block::running()->warp_number(), context.lane, address_of(address), bytes,
                  location);
}

void Observer::ldmatrix(const void* row, const Location& location) {
    constexpr int row_bytes = 16;
    if (settings_->checked) {
        if (!plain(row, row_bytes)) explain(row, row_bytes, "ldmatrix row", location);
        check_shared(row, row_bytes, Access::load, location);
    }
    if (settings_->check_races) race_shared(row, row_bytes, Access::load, location);
    if (log_ != nullptr)
        log_->add(Traffic::ldmatrix, Block::running()->warp_number(), context.lane, address_of(row),
                  row_bytes, location);
}

// ---- bulk copies and wgmma

void Observer::bulk_shared(const void* address, int64_t bytes, Access access, const Location& location) {
    if (settings_->checked) check_shared(address, bytes, access, location);
}

void Observer::bulk_global(const void* address, int64_t bytes, Access access, const Location& location) {
    Allocation* const allocation =
        settings_->checked ? check_global(address, bytes, access, location) : nullptr;
    if (settings_->check_races) race_global(allocation, address, bytes, access, location);
    if (log_ != nullptr) log_->add_bytes(access, bytes, location);
}

void Observer::bulk_add(const void* address, int64_t bytes, const Location& location) {
    if (settings_->checked) check_global(address, bytes, Access::store, location);
    if (log_ != nullptr) log_->add_bytes(Access::store, bytes, location);
}

void Observer::check_fenced(int64_t offset, int64_t bytes, const char* reader, const Location& location) {
    const int writer = settings_->checked ? shared_memory_.unfenced_writer(offset, bytes) : -1;
    if (writer >= 0)
        fail(std::string(reader) + " reads what thread " +
                 Block::running()->index_of_thread(static_cast<uint32_t>(writer)) +
                 " has written with no fence_async_proxy since: " + shared_memory_.name_at(offset),
             location);
}

void Observer::flops(int64_t flops, const Location& location) {
    if (log_ != nullptr) log_->add_flops(flops, location);
}

void* Observer::variable(const void* tag, const char* name, int64_t bytes, int64_t alignment,
                         const Location& location) {
    void* variable = shared_memory_.variable(tag, name, bytes, alignment);
    if (variable == nullptr)
        fail(std::string("no room for shared variable ") + name + " of " + std::to_string(bytes) +
                 " bytes: a block can declare " + std::to_string(static_shared_memory_limit) +
                 " bytes, and have " + std::to_string(shared_memory_limit) + " in all",
             location);
    return variable;
}

// ---- asynchronous copies

Observer::Copies& Observer::copies() {
    return copies_[Block::running()->thread_number()];
}

// The destination may change from now on, so the caller spoils it at once; the bytes come when they are
// waited for.
void Observer::start_copy(void* shared, const void* global, int valid, const Location& location) {
    const int64_t offset = shared_memory_.offset_of(shared);
    if (settings_->checked) {
        if (valid < 0 || valid > copy_bytes)
            fail("cp_async_16 of " + std::to_string(valid) + " valid bytes", location);
        if (!plain(shared, copy_bytes)) explain(shared, copy_bytes, "cp_async_16 to shared memory", location);
        if (!plain(global, copy_bytes))
            explain(global, copy_bytes, "cp_async_16 from global memory", location);
        check_shared(shared, copy_bytes, Access::store, location);
    }
    Allocation* allocation =
        settings_->checked && valid > 0 ? check_global(global, valid, Access::load, location) : nullptr;
    if (settings_->check_races) {
        race_shared(shared, copy_bytes, Access::store, location);
        if (valid > 0) race_global(allocation, global, valid, Access::load, location);
    }
    if (settings_->checked) shared_memory_.mark(offset, copy_bytes, SharedMemory::pending);
    if (log_ != nullptr) {
        const uint32_t warp = Block::running()->warp_number();
        log_->add(Traffic::load, warp, context.lane, address_of(global), valid, location);
        log_->add(Traffic::shared, warp, context.lane, address_of(shared), copy_bytes, location);
    }
    Copies& mine = copies();
    mine.open.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global),
                         valid, mine.closed_groups, location});
}

void Observer::close_group() {
    ++copies().closed_groups;
}

bool Observer::next_due_copy(int pending, AsyncCopy& copy) {
    Copies& mine = copies();
    if (mine.done == mine.open.size() || mine.open[mine.done].group >= mine.closed_groups - pending) {
        mine.open.erase(mine.open.begin(), mine.open.begin() + static_cast<ptrdiff_t>(mine.done));
        mine.done = 0;
        return false;
    }
    copy = mine.open[mine.done++];
    if (settings_->check_races) {
        race_shared(copy.shared, copy_bytes, Access::store, copy.location);
        if (copy.valid > 0) race_global(nullptr, copy.global, copy.valid, Access::load, copy.location);
    }
    if (settings_->checked) note_store(shared_memory_.offset_of(copy.shared), copy_bytes);
    return true;
}

// ---- the thread functions' side

namespace {

Observer& observer() {
    return Block::running()->observer();
}

}  // namespace

void observe_global(const void* address, int bytes, Access access, const Location& location) {
    const Hidden hidden;
    observer().global(address, bytes, access, location);
}
void observe_shared(const void* address, int bytes, Access access, const Location& location) {
    const Hidden hidden;
    observer().shared(address, bytes, access, location);
}
void observe_ldmatrix(const void* row, const Location& location) {
    const Hidden hidden;
    observer().ldmatrix(row, location);
}
void observe_tensor_core(int64_t flops, const Location& location) {
    const Hidden hidden;
    observer().flops(flops, location);
}
void* shared_variable(const void* tag, const char* name, int64_t bytes, int64_t alignment,
                      const Location& location) {
    const Hidden hidden;
    return observer().variable(tag, name, bytes, alignment, location);
}
void* dynamic_shared_memory() {
    const Hidden hidden;
    return observer().dynamic_shared_memory();
}
void start_async_copy(void* shared, const void* global, int valid, const Location& location) {
    {
        const Hidden hidden;
        observer().start_copy(shared, global, valid, location);
    }
    constexpr int nan = 0xff;
    std::memset(shared, nan, copy_bytes);
}
void close_async_group() {
    const Hidden hidden;
    observer().close_group();
}
void wait_for_async_groups(int pending) {
    for (;;) {
        AsyncCopy copy;
        {
            const Hidden hidden;
            if (!observer().next_due_copy(pending, copy)) return;
        }
        unsigned char bytes[copy_bytes] = {};
        std::memcpy(bytes, copy.global, static_cast<size_t>(copy.valid));
        std::memcpy(copy.shared, bytes, copy_bytes);
    }
}

}  // namespace train_qat::emulator
