// The product of two bfloat16 matrices by Hopper's own instructions (hopper.cuh), out (rows, columns) = left right, where
// each operand may lie either way in memory: MatmulForm (dense_matmul.h) says which.
//
// One block per multiprocessor walks its share of the tiles, 128 rows by `columns`. A thread brings slices of 64 of the inner
// dimension into a ring of stages, swizzled as they are in memory: an operand whose rows run along the inner dimension in
// one box, the other kind in boxes of 64 x 64; wgmma's descriptors tell them apart. Two warpgroups multiply 64 rows each by
// all columns, and send their sums out (hopper_outputs.cuh).
//
// The inner dimension may be divided into splits, whose sums are different outputs. A sum belongs to one block and is in
// the order of the inner dimension. Outside of the matrices operands are zero, and sums are not stored.
//
//   columns   sums of a thread   bytes of a stage   stages   KiB of shared memory
//   256       128                48 K               4        225
//   128        64                32 K               6        225
#pragma once

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda/hopper_matmul/hopper_outputs.cuh"
#include "kernels/cuda/matmul/dense_matmul.h"

namespace train_qat::CU_BACKEND {

// The tiles of training's products.
constexpr int wide_columns = 256, wide_stages = 4, narrow_columns = 128, narrow_stages = 6;

// Calls function.operator()<columns, stages>() for tiles of so many columns, one of the two.
template <typename Function>
void with_product_tile(int columns, Function&& function) {
    if (columns == wide_columns)
        function.template operator()<wide_columns, wide_stages>();
    else
        function.template operator()<narrow_columns, narrow_stages>();
}

// Output: a type of hopper_outputs.cuh or hopper_epilogues.cuh.
// buffers: of each consumer's way out.
template <MatmulForm form_, int columns_, int stages_, typename Output_, int buffers = 2>
struct HopperProduct {
    static constexpr MatmulForm form = form_;
    using Output = Output_;
    static constexpr Major left_major = form == MatmulForm::tn ? Major::mn : Major::k;
    static constexpr Major right_major = form == MatmulForm::nt ? Major::k : Major::mn;
    static constexpr int rows = 128, columns = columns_, slice = 64, stages = stages_;
    // Of columns that lie side by side in the product.
    static constexpr int right_parts = Output::right_parts, part_columns = columns / right_parts;
    static constexpr int left_bytes = rows * swizzle_row_bytes;
    static constexpr int stage_bytes = left_bytes + columns * swizzle_row_bytes;
    static constexpr int outputs = stages * stage_bytes;
    using Parts = OutputParts<buffers>;
    static constexpr int shared_bytes = outputs + ring_consumers * Parts::bytes + swizzle_atom_bytes;
};

// In tiles and slices.
struct ProductSteps {
    int rows, columns, slices, splits;
    int part_distance;  // from a column of right's first part to that of its second
    CU_DEVICE int first_slice(int split) const { return static_cast<int>(int64_t{slices} * split / splits); }
};

// ---- operands in shared memory: 64 outer by 64 inner numbers are 8 KiB, whichever way they lie

constexpr int operand_chunk = 64, operand_chunk_bytes = operand_chunk * swizzle_row_bytes;

// `extent` rows of left or columns of right.
template <Major major, int extent>
CU_DEVICE void load_operand(unsigned char* tile, const TensorMap* map, int outer, int inner, Barrier* full) {
    if constexpr (major == Major::k) {
        tensor_load(tile, map, inner, outer, full);
    } else {
        CU_UNROLL
        for (int chunk = 0; chunk < extent / operand_chunk; ++chunk)
            tensor_load(tile + chunk * operand_chunk_bytes, map, outer + chunk * operand_chunk, inner, full);
    }
}

template <Major major>
CU_DEVICE uint64_t operand_descriptor(const unsigned char* tile) {
    return major == Major::k ? k_major_descriptor(tile) : mn_major_descriptor(tile, operand_chunk_bytes);
}
// From 16 of the inner dimension to the next 16.
template <Major major>
constexpr int inner_step_bytes = major == Major::k ? 16 * 2 : 16 * swizzle_row_bytes;

// ---- the roles

template <typename Product>
CU_DEVICE void produce_operands(const TensorMap* left, const TensorMap* right, unsigned char* memory,
                                RingBarriers barriers, const ProductSteps& steps) {
    RingPlace<Product::stages> ring(1);
    for_each_tile(steps.rows, steps.columns, steps.splits, [&](TilePlace place, int split) {
        const int row = place.row * Product::rows, column = place.column * Product::part_columns;
        const int end = steps.first_slice(split + 1);
        for (int k = steps.first_slice(split); k < end; ++k, ring.advance()) {
            unsigned char* const stage = memory + ring.stage * Product::stage_bytes;
            Barrier* const full = barriers.full + ring.stage;
            barrier_wait(barriers.empty + ring.stage, ring.parity);
            barrier_arrive_expect(full, Product::stage_bytes);
            load_operand<Product::left_major, Product::rows>(stage, left, row, k * Product::slice, full);
            CU_UNROLL
            for (int part = 0; part < Product::right_parts; ++part)
                load_operand<Product::right_major, Product::part_columns>(
                    stage + Product::left_bytes + part * Product::part_columns * swizzle_row_bytes, right,
                    column + part * steps.part_distance, k * Product::slice, full);
        }
    });
}

// sum (+)= 64 rows of left by all columns of right, of one slice.
template <typename Product, int count>
CU_DEVICE void multiply_slice(float (&sum)[count], const unsigned char* left, const unsigned char* right,
                              bool accumulate) {
    constexpr Major left_major = Product::left_major, right_major = Product::right_major;
    const uint64_t a = operand_descriptor<left_major>(left), b = operand_descriptor<right_major>(right);
    wgmma_fence();
    CU_UNROLL
    for (int step = 0; step < Product::slice / 16; ++step)
        wgmma<left_major, right_major>(sum, advance_descriptor(a, step * inner_step_bytes<left_major>),
                                       advance_descriptor(b, step * inner_step_bytes<right_major>),
                                       accumulate || step > 0);
    wgmma_commit();
}

template <typename Product>
CU_DEVICE void consume_operands(const typename Product::Output& output, unsigned char* memory,
                                RingBarriers barriers, const ProductSteps& steps, int consumer) {
    RingPlace<Product::stages> ring(0);
    typename Product::Parts parts(memory + Product::outputs + consumer * Product::Parts::bytes, consumer);
    float sum[Product::columns / 2];
    for_each_tile(steps.rows, steps.columns, steps.splits, [&](TilePlace place, int split) {
        const int slices = steps.first_slice(split + 1) - steps.first_slice(split);
        int multiplied = 0;
        for (int k = 0; k < slices; ++k, ring.advance()) {
            const unsigned char* const stage = memory + ring.stage * Product::stage_bytes;
            barrier_wait(barriers.full + ring.stage, ring.parity);
            multiply_slice<Product>(sum, stage + consumer * operand_chunk_bytes, stage + Product::left_bytes,
                                    k > 0);
            // The slice before has been read.
            wgmma_wait<1>();
            if (k > 0) release_stage(barriers, multiplied);
            multiplied = ring.stage;
        }
        wgmma_wait<0>();
        keep_registers(sum);
        release_stage(barriers, multiplied);
        output.store(sum, parts, place.row * Product::rows + consumer * operand_chunk,
                     place.column * Product::part_columns, split);
    });
    parts.finish();
}

template <typename Product>
__global__ void __launch_bounds__(ring_threads, 1)
    hopper_product(const CU_GRID_CONSTANT TensorMap left, const CU_GRID_CONSTANT TensorMap right,
                   const CU_GRID_CONSTANT typename Product::Output output, ProductSteps steps) {
    if constexpr (hopper_target) {
        CU_DYN_SHARED(unsigned char, dynamic);
        CU_SHARED(full, Barrier[Product::stages]);
        CU_SHARED(empty, Barrier[Product::stages]);
        unsigned char* const memory = align_shared(dynamic);
        const RingBarriers barriers{full, empty};
        if (threadIdx.x == 0) {
            prefetch_tensor_map(&left);
            prefetch_tensor_map(&right);
            init_ring<Product::stages>(barriers, ring_consumers * warpgroup_threads / 32);
        }
        block_sync();
        divide_roles([&] { produce_operands<Product>(&left, &right, memory, barriers, steps); },
                     [&](int number) { consume_operands<Product>(output, memory, barriers, steps, number); });
    }
}

// ---- the launch

struct ProductSize {
    int64_t rows, columns, inner;
};

// a and b as MatmulForm has them, from multiples of 16 bytes on, with rows of whole 16 bytes; splits: 1 ... slices of inner.
template <typename Product>
void launch_hopper_product(CuStream stream, int multiprocessors, const ProductSize& size, const bfloat16* a,
                           const bfloat16* b, const typename Product::Output& output, int splits) {
    const auto map = [&](const char* name, const bfloat16* first, Major major, int64_t outer, int extent) {
        return major == Major::k ? make_matrix_map(name, first, outer, size.inner, extent)
                                 : make_matrix_map(name, first, size.inner, outer, operand_chunk);
    };
    const TensorMap left = map("the left operand", a, Product::left_major, size.rows, Product::rows);
    const TensorMap right =
        map("the right operand", b, Product::right_major, size.columns, Product::part_columns);
    constexpr int64_t most = int64_t{1} << 30;
    const int64_t part_distance = size.columns / Product::right_parts;
    const int64_t items = int64_t{blocks_for(size.rows, Product::rows)} *
                          blocks_for(part_distance, Product::part_columns) * splits;
    if (std::max({size.rows, size.columns, size.inner, items}) > most)
        throw std::runtime_error("matmul: more than 2^30 rows, columns or tiles");
    const ProductSteps steps{static_cast<int>(blocks_for(size.rows, Product::rows)),
                             static_cast<int>(blocks_for(part_distance, Product::part_columns)),
                             static_cast<int>(blocks_for(size.inner, Product::slice)), splits,
                             static_cast<int>(part_distance)};
    const auto blocks = static_cast<unsigned>(std::min(items, static_cast<int64_t>(multiprocessors)));
    CU_LAUNCH((hopper_product<Product>), blocks, ring_threads, Product::shared_bytes, stream, left, right,
              output, steps);
}

}  // namespace train_qat::CU_BACKEND
