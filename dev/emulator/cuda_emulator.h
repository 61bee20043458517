// The emulated device as kernels see it: the names of kernels/cuda/platform/portable.cuh for g++. Every thread
// function takes the place of its call, for messages.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "dev/emulator/launch.h"
#include "dev/emulator/machine/sanitizers.h"
#include "dev/emulator/machine/tensor_core.h"
#include "dev/emulator/machine/warp.h"
#include "dev/emulator/operations.h"
#include "kernels/tensor.h"

#define CU_BACKEND cuda_emulated

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

#define CU_UNROLL
#define CU_NO_UNROLL
#define CU_DEVICE inline
// A lambda's static variable: one tag per function and template instance, like the variable itself on a GPU.
#define CU_SHARED(name, ...)                                                                              \
    auto& name = *static_cast<std::type_identity_t<__VA_ARGS__>*>(::train_qat::emulator::shared_variable( \
        [] {                                                                                              \
            static const char tag = 0;                                                                    \
            return static_cast<const void*>(&tag);                                                        \
        }(),                                                                                              \
        #name, sizeof(std::type_identity_t<__VA_ARGS__>), alignof(std::type_identity_t<__VA_ARGS__>),     \
        std::source_location::current()))
#define CU_DYN_SHARED(type, name) \
    type* name = static_cast<type*>(::train_qat::emulator::dynamic_shared_memory())
#define CU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
    ::train_qat::emulator::launch(                                                               \
        (stream),                                                                                \
        ::train_qat::emulator::Launch{#kernel, std::source_location::current(), (grid), (block), \
                                      (shared_bytes), nullptr, 0, 0},                            \
        kernel __VA_OPT__(, ) __VA_ARGS__)

inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

namespace train_qat::cuda_emulated {

using CuStream = emulator::Stream*;
using emulator::Access;
using emulator::Location;

// ---- thread indices

inline int lane_index() {
    return static_cast<int>(threadIdx.x) & 31;
}
inline int warp_index() {
    return static_cast<int>(threadIdx.x) >> 5;
}

// ---- global memory

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T element[N];
    T& operator[](int i) { return element[i]; }
    const T& operator[](int i) const { return element[i]; }
};

// Finds sums of a wgmma that has not been waited for where they are used.
inline void check_settled(float value, const Location& location) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) == emulator::sum_in_flight) emulator::fail_unsettled(location);
}
inline void check_settled(bfloat16 value, const Location& location) {
    if ((value.bits & 0x7fffu) == emulator::sum_in_flight_bfloat16) emulator::fail_unsettled(location);
}
template <typename T, int N>
inline void check_settled(const Vector<T, N>& value, const Location& location) {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bfloat16>)
        for (const T& element : value.element) check_settled(element, location);
}
template <typename T>
inline void check_settled(const T&, const Location&) {}

template <typename T>
inline T load(const T* address, const Location& location = Location::current()) {
    if (emulator::context.observed) emulator::observe_global(address, sizeof(T), Access::load, location);
    return *address;
}
template <typename T>
inline void store(T* address, T value, const Location& location = Location::current()) {
    if (emulator::context.wgmma) check_settled(value, location);
    if (emulator::context.observed) emulator::observe_global(address, sizeof(T), Access::store, location);
    *address = value;
}
template <int N, typename T>
inline Vector<T, N> load_vector(const T* address, const Location& location = Location::current()) {
    if (emulator::context.observed) emulator::observe_global(address, sizeof(T) * N, Access::load, location);
    return *reinterpret_cast<const Vector<T, N>*>(address);
}
template <int N, typename T>
inline void store_vector(T* address, const Vector<T, N>& value,
                         const Location& location = Location::current()) {
    if (emulator::context.wgmma) check_settled(value, location);
    if (emulator::context.observed) emulator::observe_global(address, sizeof(T) * N, Access::store, location);
    *reinterpret_cast<Vector<T, N>*>(address) = value;
}

// ---- shared memory

template <typename T>
inline T load_shared(const T* address, const Location& location = Location::current()) {
    if (emulator::context.observed) emulator::observe_shared(address, sizeof(T), Access::load, location);
    return *address;
}
template <typename T>
inline void store_shared(T* address, T value, const Location& location = Location::current()) {
    if (emulator::context.wgmma) check_settled(value, location);
    if (emulator::context.observed) emulator::observe_shared(address, sizeof(T), Access::store, location);
    *address = value;
}
template <int N, typename T>
inline Vector<T, N> load_shared_vector(const T* address, const Location& location = Location::current()) {
    if (emulator::context.observed) emulator::observe_shared(address, sizeof(T) * N, Access::load, location);
    return *reinterpret_cast<const Vector<T, N>*>(address);
}
template <int N, typename T>
inline void store_shared_vector(T* address, const Vector<T, N>& value,
                                const Location& location = Location::current()) {
    if (emulator::context.wgmma) check_settled(value, location);
    if (emulator::context.observed) emulator::observe_shared(address, sizeof(T) * N, Access::store, location);
    *reinterpret_cast<Vector<T, N>*>(address) = value;
}

// Nothing arrives before cp_async_wait, as late as a GPU may be.
inline void cp_async_16(void* shared, const void* global, int valid = 16,
                        const Location& location = Location::current()) {
    emulator::start_async_copy(shared, global, valid, location);
}
inline void cp_async_commit() {
    emulator::close_async_group();
}
template <int pending>
inline void cp_async_wait() {
    emulator::wait_for_async_groups(pending);
}

// ---- barriers and warps

inline void block_sync(const Location& location = Location::current()) {
    emulator::wait_for_block(location);
}
inline void warp_sync(const Location& location = Location::current()) {
    emulator::meet("warp_sync", emulator::Ordering::memory, location);
}

// All lanes' values. Shuffles and votes exchange values, they do not order memory.
template <typename T>
TRAIN_QAT_NOT_SEEN inline const uint64_t* exchange(const char* function, T value, const Location& location) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    emulator::Warp& warp = *emulator::context.warp;
    uint64_t* values = warp.values[warp.turn & 1];
    __builtin_memcpy(&values[emulator::context.lane], &value, sizeof value);
    emulator::meet(function, emulator::Ordering::none, location);
    return values;
}
template <typename T>
TRAIN_QAT_NOT_SEEN inline T value_of_lane(const uint64_t* values, unsigned lane) {
    T value;
    __builtin_memcpy(&value, &values[lane & 31], sizeof value);
    return value;
}
template <typename T>
inline T shuffle_xor(T value, int bits, const Location& location = Location::current()) {
    const uint64_t* values = exchange("shuffle_xor", value, location);
    return value_of_lane<T>(values, emulator::context.lane ^ static_cast<unsigned>(bits));
}
template <typename T>
inline T shuffle(T value, int source, const Location& location = Location::current()) {
    const uint64_t* values = exchange("shuffle", value, location);
    return value_of_lane<T>(values, static_cast<unsigned>(source));
}

inline uint32_t ballot(bool condition, const Location& location = Location::current()) {
    const uint64_t* values = exchange("ballot", static_cast<uint64_t>(condition), location);
    uint32_t result = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        result |= static_cast<uint32_t>(value_of_lane<uint64_t>(values, lane)) << lane;
    return result;
}

// ---- tensor cores

// A row is read before the lanes meet: what another lane writes without a barrier in between need not arrive.
inline Vector<uint32_t, 4> ldmatrix_row(const void* row, const Location& location) {
    if (emulator::context.observed) emulator::observe_ldmatrix(row, location);
    return *static_cast<const Vector<uint32_t, 4>*>(row);
}
using MatrixRows = const unsigned char (*)[16];
TRAIN_QAT_NOT_SEEN inline MatrixRows exchange_rows(const char* function, const Vector<uint32_t, 4>& row,
                                                   const Location& location) {
    emulator::Warp& warp = *emulator::context.warp;
    unsigned char(*rows)[16] = warp.rows[warp.turn & 1];
    __builtin_memcpy(rows[emulator::context.lane], &row, sizeof row);
    emulator::meet(function, emulator::Ordering::memory, location);
    return rows;
}
TRAIN_QAT_NOT_SEEN inline void pick_row_pairs(uint32_t (&registers)[4], MatrixRows rows) {
    const unsigned lane = emulator::context.lane;
    for (unsigned i = 0; i < 4; ++i)
        __builtin_memcpy(&registers[i], rows[8 * i + lane / 4] + lane % 4 * 4, sizeof registers[i]);
}
TRAIN_QAT_NOT_SEEN inline void pick_column_pairs(uint32_t (&registers)[4], MatrixRows rows) {
    const unsigned lane = emulator::context.lane;
    for (unsigned i = 0; i < 4; ++i) {
        uint16_t low, high;
        __builtin_memcpy(&low, rows[8 * i + lane % 4 * 2] + lane / 4 * 2, sizeof low);
        __builtin_memcpy(&high, rows[8 * i + lane % 4 * 2 + 1] + lane / 4 * 2, sizeof high);
        registers[i] = static_cast<uint32_t>(high) << 16 | low;
    }
}
inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row,
                        const Location& location = Location::current()) {
    pick_row_pairs(registers, exchange_rows("ldmatrix_x4", ldmatrix_row(row, location), location));
}
inline void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row,
                              const Location& location = Location::current()) {
    pick_column_pairs(registers, exchange_rows("ldmatrix_x4_trans", ldmatrix_row(row, location), location));
}

inline uint32_t transpose_8x8(uint32_t matrix, const Location& location = Location::current()) {
    const uint64_t* values = exchange("transpose_8x8", matrix, location);
    const unsigned lane = emulator::context.lane, column = lane / 4, shift = column % 2 * 16;
    const auto element = [&](unsigned row) {
        return value_of_lane<uint32_t>(values, 4 * row + column / 2) >> shift & 0xffffu;
    };
    return element(lane % 4 * 2 + 1) << 16 | element(lane % 4 * 2);
}

// One meeting for the whole tile.
template <int M, int N>
inline void mma_tile(float (&sum)[M / 16][N / 8][4], const uint32_t (&a)[M / 16][4],
                     const uint32_t (&b)[N / 8][2], const Location& location = Location::current()) {
    using emulator::Ordering;
    if (emulator::context.observed)
        emulator::observe_tensor_core(int64_t{2} * M * N * 16 / emulator::warp_size, location);
    emulator::scatter_operands<M, N>(a, b);
    if (emulator::arrive_at_warp("mma_tile", Ordering::none, location)) {
        emulator::multiply_operands<M, N>();
        emulator::release_lanes(Ordering::none);
    }
    emulator::add_product<M, N>(sum);
}

// ---- numbers

inline uint32_t pack_bfloat16(float low, float high, const Location& location = Location::current()) {
    if (emulator::context.wgmma) {
        check_settled(low, location);
        check_settled(high, location);
    }
    return static_cast<uint32_t>(bfloat16(high).bits) << 16 | bfloat16(low).bits;
}
inline float low_bfloat16(uint32_t packed) {
    return __uint_as_float(packed << 16);
}
inline float high_bfloat16(uint32_t packed) {
    return __uint_as_float(packed & 0xffff0000u);
}
inline uint32_t fma_bfloat16(uint32_t a, uint32_t b, uint32_t c) {
    return pack_bfloat16(std::fma(low_bfloat16(a), low_bfloat16(b), low_bfloat16(c)),
                         std::fma(high_bfloat16(a), high_bfloat16(b), high_bfloat16(c)));
}
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = uint64_t{high} << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
inline float fast_exp2(float x) {
    return std::exp2(x);
}
inline float flushed_exp2(float x) {
    return x < -126.0f ? 0.0f : std::exp2(x);
}
inline float flushed_reciprocal(float x) {
    const float result = 1.0f / x;
    return std::abs(result) < 0x1p-126f ? 0.0f : result;
}

}  // namespace train_qat::cuda_emulated
