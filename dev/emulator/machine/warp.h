// What the inline thread functions of cuda_emulator.h work on: the running thread, and the values that the 32
// threads of a warp exchange when they meet. The functions are those of the scheduler and of the checks.
#pragma once

#include <cstdint>
#include <memory>
#include <source_location>

namespace train_qat::emulator {

constexpr int warp_size = 32;
constexpr uint32_t all_lanes = 0xffffffffu;

using Location = std::source_location;

// A warp's lanes meet in turns. Until the last lane has arrived, nobody leaves; a lane that has left and
// arrives again finds the values of the turn before untouched, because those of even and odd turns are kept
// apart.
struct Warp {
    alignas(64) uint64_t values[2][warp_size];
    alignas(64) unsigned char rows[2][warp_size][16];  // of ldmatrix
    float* operands = nullptr;                         // of mma_tile
    float* product = nullptr;

    uint32_t turn = 0;
    uint32_t alive = 0;              // lanes that have not returned
    uint32_t arrived = 0;            // lanes that wait in a warp function
    const char* function = nullptr;  // which one
    Location location;
    uint32_t at_barrier = 0;  // lanes that wait in block_sync
    uint32_t runnable = 0;    // by rank in the schedule
    uint64_t last_sync = 0;   // time when its lanes were last ordered: races.h

    std::unique_ptr<float[]> operand_memory, product_memory;
    int64_t operand_capacity = 0, product_capacity = 0;
};
// Make room for an mma_tile. The operands of the turn before may be lost, its product may not until all lanes
// have arrived.
void reserve_operands(Warp& warp, int64_t floats);
void reserve_product(Warp& warp, int64_t floats);

// The thread that runs now. Fibers never change their OS thread.
struct Context {
    Warp* warp = nullptr;
    uint32_t lane = 0;
    bool observed = false;  // accesses are checked or recorded
    bool wgmma = false;     // the block has had sums in flight
};
inline constinit thread_local Context context;

// Whether a warp function makes memory accesses before it visible to the other lanes after it.
enum class Ordering : uint8_t { none, memory };

// The running lane waits in a warp function. True: all others wait already; the caller finishes the exchange
// and calls release_lanes. False: that has happened meanwhile.
bool arrive_at_warp(const char* function, Ordering ordering, const Location& location);
void release_lanes(Ordering ordering);
// Both, for exchanges that need no finish.
void meet(const char* function, Ordering ordering, const Location& location);

void wait_for_block(const Location& location);

// ---- accesses: called while context.observed, fail the launch when the access is wrong
enum class Access : uint8_t { load, store };
void observe_global(const void* address, int bytes, Access access, const Location& location);
void observe_shared(const void* address, int bytes, Access access, const Location& location);
void observe_ldmatrix(const void* row, const Location& location);
void observe_tensor_core(int64_t flops, const Location& location);  // of this lane

// ---- shared memory
void* shared_variable(const void* tag, const char* name, int64_t bytes, int64_t alignment,
                      const Location& location);
void* dynamic_shared_memory();

// ---- asynchronous copies of the running thread
void start_async_copy(void* shared, const void* global, int valid, const Location& location);
void close_async_group();
void wait_for_async_groups(int pending);

}  // namespace train_qat::emulator
