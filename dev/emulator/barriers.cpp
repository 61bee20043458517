#include "dev/emulator/barriers.h"

#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"
#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

constexpr int64_t barrier_bytes = 8;
constexpr int most_arrivals = (1 << 20) - 1;
constexpr int64_t most_bytes = (1 << 20) - 1;

std::string bytes_text(int64_t bytes) {
    return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

}  // namespace

// ---- barriers in shared memory

void Barriers::start_block(Block& block) {
    block_ = &block;
    barriers_.clear();
}

std::string Barriers::name_of(int64_t barrier) const {
    return "the barrier at " + block_->observer().shared_memory().name_at(barrier);
}

Barriers::Barrier& Barriers::find(const void* barrier, const char* what, const Location& location) {
    const auto found = barriers_.find(block_->observer().shared_memory().offset_of(barrier));
    if (found == barriers_.end())
        block_->fail(std::string(what) + " something that barrier_init has not made a barrier: " +
                         block_->observer().place_of(barrier),
                     location);
    return found->second;
}

void Barriers::init(const void* barrier, int count, const Location& location) {
    if (count < 1 || count > most_arrivals)
        block_->fail("makes a barrier of " + std::to_string(count) + " arrivals: 1 ... " +
                         std::to_string(most_arrivals),
                     location);
    SharedMemory& memory = block_->observer().shared_memory();
    const int64_t offset = memory.offset_of(barrier);
    if (barriers_.count(offset) != 0) block_->fail("makes " + name_of(offset) + " twice", location);
    block_->observer().shared(barrier, barrier_bytes, Access::store, location);
    if (block_->settings().checked) {
        memory.forget_writers(offset, barrier_bytes);
        memory.mark(offset, barrier_bytes, SharedMemory::barrier);
    }
    Barrier& made = barriers_[offset];
    made.count = made.pending = count;
    made.maker = block_->thread_number();
}

void Barriers::publish() {
    for (auto& [offset, barrier] : barriers_)
        if (barrier.maker == block_->thread_number()) barrier.published = true;
}

void Barriers::arrive(const void* address, int64_t bytes, const Location& location) {
    Barrier& barrier = find(address, "arrives at", location);
    const int64_t offset = block_->observer().shared_memory().offset_of(address);
    if (bytes < 0 || bytes > most_bytes)
        block_->fail("announces " + bytes_text(bytes) + " at " + name_of(offset) + ": 0 ... " +
                         std::to_string(most_bytes),
                     location);
    if (barrier.pending == 0)
        block_->fail("too many arrivals: arrives at " + name_of(offset) + ", whose phase " +
                         std::to_string(barrier.phase) + " has had all " + std::to_string(barrier.count) +
                         " and waits for " + bytes_text(barrier.bytes),
                     location);
    release_to(&barrier.token);
    barrier.bytes += bytes;
    --barrier.pending;
    if (barrier.pending == 0 && barrier.bytes < 0)
        block_->fail("too few bytes are announced at " + name_of(offset) + ": " + bytes_text(-barrier.bytes) +
                         " more have landed in phase " + std::to_string(barrier.phase),
                     location);
    open_if_complete(barrier);
    block_->give_way();
}

void Barriers::open_if_complete(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    for (uint32_t thread : barrier.waiting) block_->wake(thread);
    barrier.waiting.clear();
}

void Barriers::wait(const void* address, uint32_t parity, const Location& location) {
    Barrier& barrier = find(address, "waits for", location);
    const int64_t offset = block_->observer().shared_memory().offset_of(address);
    if (parity > 1)
        block_->fail("waits for " + name_of(offset) + " with parity " + std::to_string(parity) +
                         ", which is neither 0 nor 1",
                     location);
    while ((barrier.phase & 1) == parity) {
        barrier.waiting.push_back(block_->thread_number());
        block_->suspend({Wait::Kind::barrier, offset, parity, location});
    }
    acquire_from(&barrier.token);
    block_->observer().some_order();
}

Barriers::Ticket Barriers::ticket(const void* address, const Location& location) {
    const Barrier& barrier = find(address, "starts a bulk copy that lands at", location);
    const int64_t offset = block_->observer().shared_memory().offset_of(address);
    if (!barrier.published)
        block_->fail("starts a bulk copy that lands at " + name_of(offset) + ", which thread " +
                         block_->index_of_thread(barrier.maker) +
                         " has made with no fence_barrier_init since",
                     location);
    return {offset, barrier.phase};
}

std::string Barriers::land(const Ticket& ticket, int64_t bytes) {
    Barrier& barrier = barriers_.at(ticket.barrier);
    if (barrier.phase != ticket.phase)
        return "too few bytes were announced at " + name_of(ticket.barrier) + ": its phase " +
               std::to_string(ticket.phase) + " ended before this copy of " + bytes_text(bytes) + " landed";
    barrier.bytes -= bytes;
    if (barrier.pending == 0 && barrier.bytes < 0)
        return "too few bytes were announced at " + name_of(ticket.barrier) + ": " +
               bytes_text(-barrier.bytes) + " more land in phase " + std::to_string(ticket.phase);
    open_if_complete(barrier);
    return "";
}

std::string Barriers::describe(int64_t offset, uint32_t parity) const {
    const Barrier& barrier = barriers_.at(offset);
    std::string text = "for phase parity " + std::to_string(parity) + " of " + name_of(offset) +
                       ", whose phase " + std::to_string(barrier.phase) + " lacks " +
                       std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) +
                       (barrier.count == 1 ? " arrival" : " arrivals");
    if (barrier.bytes != 0)
        text += barrier.bytes > 0 ? " and " + bytes_text(barrier.bytes) + ", which no copy brings"
                                  : ", with " + bytes_text(-barrier.bytes) + " landed that nobody announced";
    return text;
}

// ---- named barriers

void NamedBarriers::start_block(Block& block) {
    block_ = &block;
    for (Named& named : named_) named = Named();
}

void NamedBarriers::meet(int id, int threads, bool sync, const Location& location) {
    const char* const name = sync ? "group_sync" : "group_arrive";
    if (id < 1 || id >= static_cast<int>(named_.size()))
        block_->fail(
            std::string(name) + " of barrier " + std::to_string(id) + ": 1 ... 15, and 0 is block_sync's",
            location);
    if (threads < warp_size || threads % warp_size != 0)
        block_->fail(std::string(name) + " of barrier " + std::to_string(id) + " with " +
                         std::to_string(threads) + " threads, which is no multiple of 32",
                     location);
    const uint32_t warp = block_->warp_number();
    Named& named = named_[static_cast<size_t>(id)];
    release_to(&named.token);
    if (block_->arrive_at_warp(name, Ordering::memory, location)) {
        turn_[warp] = named.opened;
        arrive(id, threads, location);
        block_->release_lanes(Ordering::memory);
    }
    if (!sync) return;
    while (named.opened == turn_[warp]) {
        named.waiting.push_back(block_->thread_number());
        block_->suspend({Wait::Kind::named, id, 0, location});
    }
    acquire_from(&named.token);
    block_->observer().some_order();
}

void NamedBarriers::arrive(int id, int threads, const Location& location) {
    Named& named = named_[static_cast<size_t>(id)];
    if (named.arrived > 0 && named.threads != threads)
        block_->fail("wrong count: arrives at barrier " + std::to_string(id) + " as one of " +
                         std::to_string(threads) + " threads, but " + std::to_string(named.arrived) +
                         " have come as some of " + std::to_string(named.threads) + " at " +
                         text_of(named.location),
                     location);
    named.threads = threads;
    named.location = location;
    named.arrived += warp_size;
    if (named.arrived < threads) return;
    named.arrived = 0;
    ++named.opened;
    for (uint32_t thread : named.waiting) block_->wake(thread);
    named.waiting.clear();
}

std::string NamedBarriers::describe(int64_t id) const {
    const Named& named = named_[static_cast<size_t>(id)];
    return "for named barrier " + std::to_string(id) + ", where " + std::to_string(named.arrived) + " of " +
           std::to_string(named.threads) + " threads have arrived";
}

std::string NamedBarriers::left_over(Location& location) const {
    for (size_t id = 0; id < named_.size(); ++id) {
        if (named_[id].arrived == 0) continue;
        location = named_[id].location;
        return "the block ends with " + std::to_string(named_[id].arrived) + " of " +
               std::to_string(named_[id].threads) + " threads arrived at named barrier " + std::to_string(id);
    }
    return "";
}

}  // namespace train_qat::emulator
