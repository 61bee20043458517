// Hopper's instructions as kernels see them on the emulated device: the names of kernels/cuda/platform/hopper.cuh for g++.
#pragma once

#include <array>
#include <cstdint>

#include "dev/emulator/cuda_emulator.h"
#include "dev/emulator/operations.h"

#define CU_GRID_CONSTANT

namespace train_qat::cuda_emulated {

constexpr bool hopper_target = true;

using emulator::TensorMap;

// ---- barriers

struct alignas(8) Barrier {
    uint64_t state;  // the emulator keeps its own
};

inline void barrier_init(Barrier* barrier, int arrivals, const Location& location = Location::current()) {
    emulator::init_barrier(barrier, arrivals, location);
}
inline void fence_barrier_init(const Location& location = Location::current()) {
    emulator::publish_barriers(location);
}
inline void barrier_arrive(Barrier* barrier, const Location& location = Location::current()) {
    emulator::arrive_at_barrier(barrier, 0, location);
}
inline void barrier_arrive_expect(Barrier* barrier, int bytes,
                                  const Location& location = Location::current()) {
    emulator::arrive_at_barrier(barrier, bytes, location);
}
inline void barrier_wait(Barrier* barrier, uint32_t parity, const Location& location = Location::current()) {
    emulator::wait_for_barrier(barrier, parity, location);
}
inline void group_sync(int id, int threads, const Location& location = Location::current()) {
    emulator::meet_at_named_barrier(id, threads, true, location);
}
inline void group_arrive(int id, int threads, const Location& location = Location::current()) {
    emulator::meet_at_named_barrier(id, threads, false, location);
}
template <int count>
inline void grow_registers() {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0);
}
template <int count>
inline void shrink_registers() {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0);
}

// ---- copies

inline uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(emulator::shared_address(shared));
}
inline void fence_async_proxy(const Location& location = Location::current()) {
    emulator::fence_writes(location);
}
inline void prefetch_tensor_map(const TensorMap*) {}

inline void tensor_load(void* shared, const TensorMap* map, int x, int y, Barrier* barrier,
                        const Location& location = Location::current()) {
    emulator::start_tensor_load(shared, *map, 2, {x, y, 0}, barrier, location);
}
inline void tensor_load(void* shared, const TensorMap* map, int x, int y, int z, Barrier* barrier,
                        const Location& location = Location::current()) {
    emulator::start_tensor_load(shared, *map, 3, {x, y, z}, barrier, location);
}
inline void bulk_load(void* shared, const void* global, int bytes, Barrier* barrier,
                      const Location& location = Location::current()) {
    emulator::start_bulk_load(shared, global, bytes, barrier, location);
}
inline void tensor_store(const TensorMap* map, int x, int y, const void* shared,
                         const Location& location = Location::current()) {
    emulator::start_tensor_store(*map, 2, {x, y, 0}, shared, false, location);
}
inline void tensor_store(const TensorMap* map, int x, int y, int z, const void* shared,
                         const Location& location = Location::current()) {
    emulator::start_tensor_store(*map, 3, {x, y, z}, shared, false, location);
}
inline void tensor_add(const TensorMap* map, int x, int y, const void* shared,
                       const Location& location = Location::current()) {
    emulator::start_tensor_store(*map, 2, {x, y, 0}, shared, true, location);
}
inline void tensor_add(const TensorMap* map, int x, int y, int z, const void* shared,
                       const Location& location = Location::current()) {
    emulator::start_tensor_store(*map, 3, {x, y, z}, shared, true, location);
}
inline void bulk_commit(const Location& location = Location::current()) {
    emulator::close_bulk_stores(location);
}
template <int pending>
inline void bulk_wait_read(const Location& location = Location::current()) {
    emulator::wait_for_bulk_stores(pending, false, location);
}
template <int pending>
inline void bulk_wait(const Location& location = Location::current()) {
    emulator::wait_for_bulk_stores(pending, true, location);
}

inline void stmatrix_x4(void* row, const uint32_t (&registers)[4],
                        const Location& location = Location::current()) {
    emulator::store_matrix_row(row, registers, false, "stmatrix_x4", location);
}
inline void stmatrix_x4_trans(void* row, const uint32_t (&registers)[4],
                              const Location& location = Location::current()) {
    emulator::store_matrix_row(row, registers, true, "stmatrix_x4_trans", location);
}

// ---- products by warpgroups

enum class Major : int { k, mn };

inline void wgmma_fence(const Location& location = Location::current()) {
    emulator::fence_wgmma(location);
}
inline void wgmma_commit(const Location& location = Location::current()) {
    emulator::commit_wgmma(location);
}
template <int pending>
inline void wgmma_wait(const Location& location = Location::current()) {
    emulator::wait_for_wgmma(pending, location);
}
template <typename T, int count>
inline void keep_registers(T (&)[count]) {
    static_assert(sizeof(T) == 4);
}

template <Major a_major = Major::k, Major b_major = Major::k, int count>
inline void wgmma(float (&sum)[count], uint64_t a, uint64_t b, bool accumulate,
                  const Location& location = Location::current()) {
    static_assert(count == 32 || count == 64 || count == 96 || count == 128);
    emulator::start_wgmma(
        sum, {2 * count, a, b, nullptr, a_major == Major::mn, b_major == Major::mn, accumulate}, location);
}
template <Major b_major = Major::k, int count>
inline void wgmma(float (&sum)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate,
                  const Location& location = Location::current()) {
    static_assert(count == 32 || count == 64 || count == 96 || count == 128);
    emulator::start_wgmma(sum, {2 * count, 0, b, a, false, b_major == Major::mn, accumulate}, location);
}

}  // namespace train_qat::cuda_emulated
