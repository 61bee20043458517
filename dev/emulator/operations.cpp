#include "dev/emulator/operations.h"

#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"
#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

Hopper& hopper(const Location& location) {
    return Block::running()->hopper(location);
}

}  // namespace

void init_barrier(const void* barrier, int arrivals, const Location& location) {
    const Hidden hidden;
    hopper(location).barriers.init(barrier, arrivals, location);
}
void publish_barriers(const Location& location) {
    const Hidden hidden;
    hopper(location).barriers.publish();
}
void arrive_at_barrier(const void* barrier, int64_t bytes, const Location& location) {
    const Hidden hidden;
    hopper(location).barriers.arrive(barrier, bytes, location);
}
void wait_for_barrier(const void* barrier, uint32_t parity, const Location& location) {
    const Hidden hidden;
    hopper(location).barriers.wait(barrier, parity, location);
}
void meet_at_named_barrier(int id, int threads, bool sync, const Location& location) {
    const Hidden hidden;
    hopper(location).named.meet(id, threads, sync, location);
}

void fence_writes(const Location& location) {
    const Hidden hidden;
    hopper(location);
    Block& block = *Block::running();
    if (block.settings().checked) block.observer().shared_memory().fence(block.thread_number());
}
int64_t shared_address(const void* shared) {
    const Hidden hidden;
    return Block::running()->observer().shared_memory().offset_of(shared);
}
void start_tensor_load(void* shared, const TensorMap& map, int rank, const std::array<int, 3>& at,
                       const void* barrier, const Location& location) {
    const Hidden hidden;
    hopper(location).copies.load_tensor(shared, map, rank, at, barrier, location);
}
void start_bulk_load(void* shared, const void* global, int64_t bytes, const void* barrier,
                     const Location& location) {
    const Hidden hidden;
    hopper(location).copies.load(shared, global, bytes, barrier, location);
}
void start_tensor_store(const TensorMap& map, int rank, const std::array<int, 3>& at, const void* shared,
                        bool add, const Location& location) {
    const Hidden hidden;
    hopper(location).copies.store_tensor(map, rank, at, shared, add, location);
}
void close_bulk_stores(const Location& location) {
    const Hidden hidden;
    hopper(location).copies.close_group();
}
void wait_for_bulk_stores(int pending, bool written, const Location& location) {
    const Hidden hidden;
    hopper(location).copies.wait(pending, written);
}

void store_matrix_row(void* row, const uint32_t (&registers)[4], bool transposed, const char* function,
                      const Location& location) {
    constexpr int bytes = 16, elements = 8;
    const Hidden hidden;
    hopper(location);
    Warp& warp = *context.warp;
    unsigned char(*rows)[16] = warp.rows[warp.turn & 1];
    std::memcpy(rows[context.lane], registers, sizeof registers);
    meet(function, Ordering::none, location);
    const unsigned matrix = context.lane / elements, r = context.lane % elements;
    unsigned char content[bytes];
    for (unsigned c = 0; c < elements; ++c) {
        const unsigned lane = transposed ? 4 * c + r / 2 : 4 * r + c / 2, half = transposed ? r % 2 : c % 2;
        std::memcpy(content + 2 * c, rows[lane] + 4 * matrix + 2 * half, 2);
    }
    if (context.observed) observe_shared(row, bytes, Access::store, location);
    std::memcpy(row, content, sizeof content);
}

void fence_wgmma(const Location& location) {
    const Hidden hidden;
    hopper(location).warpgroups.fence();
}
void start_wgmma(float* sums, const Product& product, const Location& location) {
    const Hidden hidden;
    hopper(location).warpgroups.multiply(sums, product, location);
}
void commit_wgmma(const Location& location) {
    const Hidden hidden;
    hopper(location).warpgroups.commit(location);
}
void wait_for_wgmma(int pending, const Location& location) {
    const Hidden hidden;
    hopper(location).warpgroups.wait(pending, location);
}
void fail_unsettled(const Location& location) {
    const Hidden hidden;
    Block::running()->fail("uses sums of a wgmma that has not been waited for", location);
}

}  // namespace train_qat::emulator
