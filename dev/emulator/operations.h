// What the inline thread functions of hopper_emulator.h call.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dev/emulator/machine/tensor_map.h"
#include "dev/emulator/machine/warp.h"

namespace train_qat::emulator {

// ---- barriers: barriers.h
void init_barrier(const void* barrier, int arrivals, const Location& location);
void publish_barriers(const Location& location);
void arrive_at_barrier(const void* barrier, int64_t bytes, const Location& location);
void wait_for_barrier(const void* barrier, uint32_t parity, const Location& location);
void meet_at_named_barrier(int id, int threads, bool sync, const Location& location);

// ---- copies: bulk_copies.h
void fence_writes(const Location& location);  // of the running thread, for the asynchronous proxy
int64_t shared_address(const void* shared);
void start_tensor_load(void* shared, const TensorMap& map, int rank, const std::array<int, 3>& at,
                       const void* barrier, const Location& location);
void start_bulk_load(void* shared, const void* global, int64_t bytes, const void* barrier,
                     const Location& location);
void start_tensor_store(const TensorMap& map, int rank, const std::array<int, 3>& at, const void* shared,
                        bool add, const Location& location);
void close_bulk_stores(const Location& location);
void wait_for_bulk_stores(int pending, bool written, const Location& location);
// The 16 bytes of row `lane % 8` of matrix `lane / 8`, of four 8x8 matrices whose fragments the warp's lanes hold.
void store_matrix_row(void* row, const uint32_t (&registers)[4], bool transposed, const char* function,
                      const Location& location);

// ---- products: warpgroups.h
// A NaN that arithmetic and rounding to bfloat16 leave as it is.
constexpr uint32_t sum_in_flight = 0x7fe5a5a5u;
constexpr uint32_t sum_in_flight_bfloat16 = sum_in_flight >> 16;

// sums (64 x n) (+)= a (64 x 16) b (16 x n). The bits of descriptors: kernels/cuda/platform/hopper.cuh.
struct Product {
    int n;
    uint64_t a, b;                // descriptors
    const uint32_t* a_registers;  // null: a is in shared memory
    bool a_transposed, b_transposed, accumulate;
};
void fence_wgmma(const Location& location);
void start_wgmma(float* sums, const Product& product, const Location& location);
void commit_wgmma(const Location& location);
void wait_for_wgmma(int pending, const Location& location);
[[noreturn]] void fail_unsettled(const Location& location);

}  // namespace train_qat::emulator
