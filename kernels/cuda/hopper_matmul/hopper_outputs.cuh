// Where the sums of a product by Hopper's instructions go (hopper_product.cuh). An output is a kernel's argument with
//     right_parts                              of how many parts, one behind the other, the columns consist
//     store(sum, parts, row, column, split)
// for a consumer's sums of 64 rows from `row` on, those of all columns from `column` on; split: which part of the inner
// dimension they are of. With right_parts 2, half of a tile's columns are `column` and on, the other half as many of the
// product's second half. store may use up the sums. What lies outside of the matrix is left out. In a thread's sums sum[4j + 2h + e] belongs to row
// 16 w + g + 8h and column 8j + 2t + e, with warp w of the consumer, g = lane / 4 and t = lane % 4.
//
// No access meets a bank conflict: stmatrix writes whole chunks of 16 bytes, which the swizzle spreads. float32 numbers go out
// by twos; there lanes of odd rows take two columns of eight in another order, or they would meet those of even rows.
#pragma once

#include "kernels/cuda/hopper_matmul/hopper_tiles.cuh"
#include "kernels/cuda/platform/tensor_map.cuh"

namespace train_qat::CU_BACKEND {

// 64 columns of the sums, 32 numbers of a thread.
CU_DEVICE void write_bfloat16(unsigned char* buffer, const float* sum) {
    const int lane = lane_index(), row = warp_index() % 4 * 16 + lane % 16;
    CU_UNROLL
    for (int j = 0; j < 8; j += 2) {
        uint32_t pairs[4];
        CU_UNROLL
        for (int i = 0; i < 4; ++i) pairs[i] = pack_bfloat16(sum[4 * j + 2 * i], sum[4 * j + 2 * i + 1]);
        stmatrix_x4(buffer + swizzled_chunk(row, j + lane / 16), pairs);
    }
}

// 32 columns, 16 numbers of a thread.
CU_DEVICE void write_float32(unsigned char* buffer, const float* sum) {
    const int lane = lane_index(), row = warp_index() % 4 * 16 + lane / 4, t = lane % 4;
    const bool odd = row % 2 == 1;
    CU_UNROLL
    for (int half = 0; half < 2; ++half) {
        CU_UNROLL
        for (int j = 0; j < 4; ++j) {
            const float *even_row = sum + 4 * j + 2 * half, *odd_row = sum + 4 * (j ^ 2) + 2 * half;
            const int chunk = 2 * (odd ? j ^ 2 : j) + t / 2;
            auto* const place =
                reinterpret_cast<float*>(buffer + swizzled_chunk(row + 8 * half, chunk)) + t % 2 * 2;
            store_shared_vector<2>(
                place, Vector<float, 2>{odd ? odd_row[0] : even_row[0], odd ? odd_row[1] : even_row[1]});
        }
    }
}

// ---- outputs, and how the host makes them

// A matrix whose rows begin `pitch` numbers from each other.
inline TensorMap sum_map(const char* name, bfloat16* first, int64_t rows, int64_t columns, int64_t pitch) {
    return make_tensor_map(first, {.name = name,
                                   .extent = {columns, rows, 1},
                                   .pitch = {pitch * static_cast<int64_t>(sizeof(bfloat16)), 0},
                                   .box = {64, 64, 1}});
}

struct Bfloat16Output {
    static constexpr int right_parts = 1;
    TensorMap out;  // boxes of 64 rows and columns

    template <int count, typename Parts>
    CU_DEVICE void store(const float (&sum)[count], Parts& parts, int row, int column, int /*split*/) const {
        CU_UNROLL
        for (int part = 0; part < count / 32; ++part) {
            write_bfloat16(parts.open(), sum + 32 * part);
            parts.close(
                [&](const unsigned char* written) { tensor_store(&out, column + 64 * part, row, written); });
        }
    }
};

inline Bfloat16Output bfloat16_output(bfloat16* out, int64_t rows, int64_t columns) {
    return {sum_map("the product", out, rows, columns, columns)};
}

// A matrix for each split.
struct Float32Output {
    static constexpr int right_parts = 1;
    TensorMap out;  // (column, row, split), boxes of 64 rows and 32 columns
    bool add;       // to what is there: one addition for a number, so its order is none

    template <int count, typename Parts>
    CU_DEVICE void store(const float (&sum)[count], Parts& parts, int row, int column, int split) const {
        CU_UNROLL
        for (int part = 0; part < count / 16; ++part) {
            write_float32(parts.open(), sum + 16 * part);
            parts.close([&](const unsigned char* written) {
                if (add)
                    tensor_add(&out, column + 32 * part, row, split, written);
                else
                    tensor_store(&out, column + 32 * part, row, split, written);
            });
        }
    }
};

inline Float32Output float32_output(float* out, int64_t rows, int64_t columns, int splits, bool add) {
    const int64_t pitch = columns * static_cast<int64_t>(sizeof(float));
    return {make_tensor_map(out, {.name = "the sums",
                                  .rank = 3,
                                  .extent = {columns, rows, splits},
                                  .pitch = {pitch, rows * pitch},
                                  .box = {32, 64, 1},
                                  .swizzled = true}),
            add};
}

}  // namespace train_qat::CU_BACKEND
