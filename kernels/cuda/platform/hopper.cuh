// Hopper's own instructions (compute capability 9.0a) for kernels: asynchronous barriers, bulk copies by tensor maps,
// and products by warpgroups. As portable.cuh: thin wrappers for nvcc, the same names checked on the CPU for g++
// (<hopper_emulator.h>).
//
// Rules for kernels, besides portable.cuh's:
//   * The body stands in `if constexpr (hopper_target) { ... }`: for other targets every wrapper does nothing.
//   * Tensor maps are parameters, `const CU_GRID_CONSTANT TensorMap map`, made by tensor_map.cuh and passed by address.
//   * Tiles with 128-byte swizzle begin at multiples of 1024 of the shared address: align_shared, and 1 KiB more asked for.
//   * Shared memory written by threads (store_shared, stmatrix) and read by wgmma or a tensor store: every thread that
//     wrote calls fence_async_proxy() before the barrier behind which it is read.
//   * What wgmma reads, registers and shared memory, and its sums are nobody's until wgmma_wait; then call keep_registers on the
//     sums, and on a's registers, which keeps the compiler from using them earlier.
//   * No trap and no assert in a kernel whose warpgroups play different roles: ptxas then gives all of them the fewest registers.
//
// A ring of stages between a producer and consumers: full[s] has one arrival, the producer's with the bytes of its copies;
// empty[s] has one of every consuming warp. Consumers wait with parity 0 first, the producer with 1: a new barrier
// answers to parity 1 at once. A wait only tells a phase from its neighbours.
#pragma once

#include "kernels/cuda/platform/portable.cuh"

#if !defined(__CUDACC__)

#include <hopper_emulator.h>

#else

#include "kernels/cuda/platform/hopper_barriers.cuh"
#include "kernels/cuda/platform/hopper_copies.cuh"
#include "kernels/cuda/platform/hopper_wgmma.cuh"

#endif

namespace train_qat::CU_BACKEND {

constexpr int warpgroup_threads = 128;

// ---- tiles in shared memory with 128-byte swizzle: rows of 128 bytes, 8 rows are an atom of 1024

constexpr int swizzle_atom_bytes = 1024, swizzle_row_bytes = 128;

// The first byte at or after `shared` whose shared address is a multiple of `alignment`.
template <int alignment = swizzle_atom_bytes>
CU_DEVICE unsigned char* align_shared(void* shared) {
    return static_cast<unsigned char*>(shared) + (alignment - shared_address(shared) % alignment) % alignment;
}

// Byte of 16-byte chunk `chunk` (0 ... 7) of row `row` in a tile.
CU_DEVICE int swizzled_chunk(int row, int chunk) {
    return row * swizzle_row_bytes + (chunk ^ row % 8) * 16;
}

// ---- descriptors of wgmma's operands in shared memory
//   bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride offset / 16, 62-63: 1 for 128-byte swizzle
// with the offset from 8 rows to the next 8 as stride. A descriptor moves on in steps of the tile's address.

CU_DEVICE uint64_t tile_descriptor(const void* tile, int leading_bytes) {
    return static_cast<uint64_t>(shared_address(tile) >> 4 & 0x3fff) |
           static_cast<uint64_t>(leading_bytes >> 4) << 16 |
           static_cast<uint64_t>(swizzle_atom_bytes >> 4) << 32 | uint64_t{1} << 62;
}
// A tile whose rows are 64 consecutive k of one row of a, or one column of b. The next 16 k: 32 bytes on; the next 64
// rows: 8192 bytes.
CU_DEVICE uint64_t k_major_descriptor(const void* tile) {
    return tile_descriptor(tile, 16);
}
// A tile whose rows are 64 consecutive rows of a, or columns of b, of one k. The next 16 k: 2048 bytes on; the next 64
// rows or columns: `chunk_bytes`, 128 bytes for each k of the tile.
CU_DEVICE uint64_t mn_major_descriptor(const void* tile, int chunk_bytes) {
    return tile_descriptor(tile, chunk_bytes);
}
CU_DEVICE uint64_t advance_descriptor(uint64_t descriptor, int bytes) {
    return descriptor + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace train_qat::CU_BACKEND
