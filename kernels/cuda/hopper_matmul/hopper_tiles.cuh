// What the matmuls by Hopper's own instructions share: two consumers beside a producer, their walk over the tiles of the
// product, and the way of a consumer's sums through shared memory into memory.
#pragma once

#include "kernels/cuda/matmul/matmul_tiles.cuh"
#include "kernels/cuda/platform/hopper_ring.cuh"

namespace train_qat::CU_BACKEND {

// Calls body(place, part) for each of this block's tiles. parts: of the inner dimension; tiles of one part come together.
template <typename Body>
CU_DEVICE void for_each_tile(int tile_rows, int tile_columns, int parts, Body&& body) {
    const int tiles = tile_rows * tile_columns;
    for (int item = static_cast<int>(blockIdx.x); item < tiles * parts; item += static_cast<int>(gridDim.x)) {
        const int part = item / tiles;
        body(place_in_band(item - part * tiles, tile_rows, tile_columns), part);
    }
}

// A consumer's way out: 64 rows of 128 bytes, swizzled, at a time, through `buffers` buffers in rotation. All its threads
// call open(), write, and call close().
template <int buffers>
class OutputParts {
  public:
    static constexpr int part_bytes = 64 * swizzle_row_bytes, bytes = buffers * part_bytes;

    CU_DEVICE OutputParts(unsigned char* memory, int consumer) : memory_(memory), barrier_(1 + consumer) {}

    // A buffer that nothing reads any more.
    CU_DEVICE unsigned char* open() {
        if (first_thread()) bulk_wait_read<buffers - 1>();
        group_sync(barrier_, warpgroup_threads);
        return current();
    }
    // store(buffer), by one thread, starts the bulk stores that read it.
    template <typename Store>
    CU_DEVICE void close(Store&& store) {
        fence_async_proxy();
        group_sync(barrier_, warpgroup_threads);
        if (first_thread()) {
            store(current());
            bulk_commit();
        }
        ++closed_;
    }
    // Before the threads return.
    CU_DEVICE void finish() {
        if (first_thread()) bulk_wait_read<0>();
    }

  private:
    CU_DEVICE static bool first_thread() { return threadIdx.x % warpgroup_threads == 0; }
    CU_DEVICE unsigned char* current() const { return memory_ + closed_ % buffers * part_bytes; }

    unsigned char* memory_;
    int barrier_, closed_ = 0;
};

}  // namespace train_qat::CU_BACKEND
