#include "dev/emulator/bulk_copies.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"

namespace train_qat::emulator {

namespace {

constexpr int64_t box_alignment = 128, swizzled_alignment = 1024, bulk_alignment = 16;

bool overlap(int64_t a, int64_t a_bytes, int64_t b, int64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

int64_t alignment_of(const TensorMap& map) {
    return map.swizzled != 0 ? swizzled_alignment : box_alignment;
}

}  // namespace

void BulkCopies::start_block(Block& block, uint32_t threads) {
    block_ = &block;
    loads_.clear();
    stores_.assign(threads, Stores());
}

void BulkCopies::check_map(const TensorMap& map, int rank, const Location& location) const {
    if (map.mark != TensorMap::right_mark)
        block_->fail("uses a tensor map that make_tensor_map did not make", location);
    if (map.rank != rank)
        block_->fail("uses a tensor map of " + std::to_string(map.rank) + " dimensions with " +
                         std::to_string(rank) + " coordinates",
                     location);
}

void BulkCopies::check_destination(const void* shared, int64_t bytes, int64_t alignment, const char* what,
                                   const Location& location) const {
    const SharedMemory& memory = block_->observer().shared_memory();
    const int64_t offset = memory.offset_of(shared);
    if (memory.contains(shared) && offset % alignment == 0 && bytes > 0) return;
    block_->fail(std::string("misaligned ") + what + ": " + std::to_string(bytes) + " bytes at " +
                     block_->observer().place_of(shared) + ", shared address " + std::to_string(offset) +
                     ", which must be a multiple of " + std::to_string(alignment),
                 location);
}

// ---- loads

void BulkCopies::load_tensor(void* shared, const TensorMap& map, int rank, const std::array<int, 3>& at,
                             const void* barrier, const Location& location) {
    check_map(map, rank, location);
    const int64_t bytes = map.box_bytes();
    check_destination(shared, bytes, alignment_of(map), "destination of a tensor load", location);
    for_each_row(map, at, [&](int64_t, const unsigned char* row, int64_t, int64_t inside) {
        if (row != nullptr) block_->observer().bulk_global(row, inside, Access::load, location);
    });
    start({0, bytes, map, at, nullptr, block_->hopper().barriers.ticket(barrier, location),
           block_->thread_number(), location},
          shared);
}

void BulkCopies::load(void* shared, const void* global, int64_t bytes, const void* barrier,
                      const Location& location) {
    if (bytes <= 0 || bytes % bulk_alignment != 0 ||
        reinterpret_cast<uintptr_t>(global) % bulk_alignment != 0)
        block_->fail("misaligned source of a bulk load: " + std::to_string(bytes) + " bytes at " +
                         block_->observer().place_of(global) + ": both must be multiples of 16",
                     location);
    check_destination(shared, bytes, bulk_alignment, "destination of a bulk load", location);
    block_->observer().bulk_global(global, bytes, Access::load, location);
    start({0,
           bytes,
           TensorMap(),
           {},
           static_cast<const unsigned char*>(global),
           block_->hopper().barriers.ticket(barrier, location),
           block_->thread_number(),
           location},
          shared);
}

void BulkCopies::start(Load load, void* shared) {
    Observer& observer = block_->observer();
    SharedMemory& memory = observer.shared_memory();
    load.offset = memory.offset_of(shared);
    observer.bulk_shared(shared, load.bytes, Access::store, load.location);
    constexpr int nan = 0xff;
    std::memset(shared, nan, static_cast<size_t>(load.bytes));
    if (block_->settings().checked) {
        memory.forget_writers(load.offset, load.bytes);
        memory.mark(load.offset, load.bytes, SharedMemory::landing);
    }
    loads_.push_back(std::move(load));
    block_->give_way();
}

bool BulkCopies::land_one() {
    if (loads_.empty()) return false;
    const auto chosen = loads_.begin() + static_cast<ptrdiff_t>(block_->draw(loads_.size()));
    Load load = std::move(*chosen);
    loads_.erase(chosen);
    land(std::move(load));
    return true;
}

void BulkCopies::maybe_land() {
    constexpr uint64_t one_in = 8;
    if (!loads_.empty() && block_->draw(one_in) == 1) land_one();
}

void BulkCopies::land(Load load) {
    SharedMemory& memory = block_->observer().shared_memory();
    unsigned char* const box = memory.at(load.offset);
    if (load.map.rank == 0) {
        std::memcpy(box, load.global, static_cast<size_t>(load.bytes));
    } else {
        std::memset(box, 0, static_cast<size_t>(load.bytes));
        for_each_row(load.map, load.at,
                     [&](int64_t offset, const unsigned char* row, int64_t before, int64_t inside) {
                         for_each_piece(load.map, offset + before, inside,
                                        [&](int64_t to, int64_t done, int64_t piece) {
                                            std::memcpy(box + to, row + done, static_cast<size_t>(piece));
                                        });
                     });
    }
    if (block_->settings().checked) {
        const bool plain = load.map.rank != 0 && load.map.swizzled == 0;
        memory.mark(
            load.offset, load.bytes,
            static_cast<SharedMemory::State>(SharedMemory::written | (plain ? SharedMemory::unswizzled : 0)));
    }
    const std::string trouble = block_->hopper().barriers.land(load.ticket, load.bytes);
    if (!trouble.empty()) block_->end_with(block_->message_of(load.thread, trouble, load.location));
}

// ---- stores

void BulkCopies::store_tensor(const TensorMap& map, int rank, const std::array<int, 3>& at,
                              const void* shared, bool add, const Location& location) {
    Observer& observer = block_->observer();
    SharedMemory& memory = observer.shared_memory();
    check_map(map, rank, location);
    if (add && map.float32 == 0)
        block_->fail("adds by a tensor map whose elements are not float32", location);
    const int64_t bytes = map.box_bytes(), offset = memory.offset_of(shared);
    check_destination(shared, bytes, alignment_of(map), "source of a tensor store", location);
    observer.bulk_shared(shared, bytes, Access::load, location);
    observer.check_fenced(offset, bytes, "a tensor store", location);
    for_each_row(map, at, [&](int64_t, const unsigned char* row, int64_t, int64_t inside) {
        if (row == nullptr) return;
        if (add)
            observer.bulk_add(row, inside, location);
        else
            observer.bulk_global(row, inside, Access::store, location);
    });
    if (block_->settings().checked) memory.lock(offset, bytes);
    Stores& mine = stores_[block_->thread_number()];
    mine.open.push_back({offset, bytes, map, at, add, true, mine.closed_groups, location,
                         read_box(map, static_cast<const unsigned char*>(shared))});
    block_->give_way();
}

std::vector<unsigned char> BulkCopies::read_box(const TensorMap& map, const unsigned char* shared) const {
    std::vector<unsigned char> content(static_cast<size_t>(map.box_bytes()));
    for_each_piece(map, 0, map.box_bytes(), [&](int64_t from, int64_t done, int64_t piece) {
        std::memcpy(content.data() + done, shared + from, static_cast<size_t>(piece));
    });
    return content;
}

void BulkCopies::write(const Store& store) {
    for_each_row(store.map, store.at,
                 [&](int64_t offset, unsigned char* row, int64_t before, int64_t inside) {
                     const unsigned char* const from = store.content.data() + offset + before;
                     if (!store.add) {
                         if (inside > 0) std::memcpy(row, from, static_cast<size_t>(inside));
                         return;
                     }
                     // Other blocks add to the same numbers.
                     for (int64_t byte = 0; byte < inside; byte += static_cast<int64_t>(sizeof(float))) {
                         float term;
                         std::memcpy(&term, from + byte, sizeof term);
                         std::atomic_ref<float>(*reinterpret_cast<float*>(row + byte))
                             .fetch_add(term, std::memory_order_relaxed);
                     }
                 });
}

void BulkCopies::close_group() {
    ++stores_[block_->thread_number()].closed_groups;
}

void BulkCopies::release(Store& store) {
    if (store.reading && block_->settings().checked)
        block_->observer().shared_memory().unlock(store.offset, store.bytes);
    store.reading = false;
}

void BulkCopies::wait(int pending, bool written) {
    Stores& mine = stores_[block_->thread_number()];
    const auto due = [&](const Store& store) { return store.group < mine.closed_groups - pending; };
    for (Store& store : mine.open) {
        if (!due(store)) continue;
        release(store);
        if (written) write(store);
    }
    if (written) std::erase_if(mine.open, due);
}

void BulkCopies::thread_ends(const Location& location) {
    for (const Store& store : stores_[block_->thread_number()].open)
        if (store.reading)
            block_->fail("returns while the tensor store at " + text_of(store.location) +
                             " still reads shared memory: it has not waited for it",
                         location);
}

void BulkCopies::block_ends() {
    if (!loads_.empty())
        block_->end_with(block_->message_of(loads_.front().thread,
                                            "the block ends while this bulk copy is under way",
                                            loads_.front().location));
    for (Stores& stores : stores_) {
        for (const Store& store : stores.open) write(store);
        stores.open.clear();
    }
}

std::string BulkCopies::user_of(int64_t offset, int64_t bytes) const {
    for (const Load& load : loads_)
        if (overlap(load.offset, load.bytes, offset, bytes))
            return "the bulk copy at " + text_of(load.location) + " has not landed";
    for (const Stores& stores : stores_)
        for (const Store& store : stores.open)
            if (store.reading && overlap(store.offset, store.bytes, offset, bytes))
                return "the tensor store at " + text_of(store.location) + " has not been waited for";
    return "";
}

}  // namespace train_qat::emulator
