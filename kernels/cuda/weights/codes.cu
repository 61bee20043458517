// Packed codes (kernels/codes.h) back into numbers: level = lowest_level + code * level_step, times the scale of its
// group where one is given.
//
// Floor: codes read and numbers written, once. A thread takes eight codes, one access, and writes eight numbers.
#include "kernels/cuda/weights/codes.cuh"

#include "kernels/checks.h"
#include "kernels/codes.h"
#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int unpack_threads = 256, unpack_columns = 8;

// Eight codes, `bits` bytes, by each thread. out: (N, K); codes: (N, row_bytes); scales: (N, K / group), or
// null: the levels themselves
template <Grid grid, typename T>
__global__ void __launch_bounds__(unpack_threads)
    unpack_codes_kernel(T* out, const uint8_t* codes, int64_t row_bytes, const float* scales, int64_t rows,
                        int64_t columns, int64_t group, bool vectors) {
    constexpr int bits = code_bits(grid);
    const int64_t per_row = (columns + unpack_columns - 1) / unpack_columns;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * unpack_threads + threadIdx.x;
    if (index >= rows * per_row) return;
    const int64_t row = index / per_row, column = index % per_row * unpack_columns;
    Vector<uint8_t, bits> packed;
    if constexpr (bits == 1)
        packed[0] = load(codes + row * row_bytes + column / 8);
    else
        packed = load_vector<bits>(codes + row * row_bytes + column / 8 * bits);
    Vector<T, unpack_columns> levels;
    CU_UNROLL
    for (int j = 0; j < unpack_columns; ++j) {
        const uint32_t code = packed[j * bits / 8] >> (j * bits % 8) & ((1u << bits) - 1u);
        const float level = level_of_code<grid>(code);
        const bool folded = scales != nullptr && column + j < columns;
        levels[j] = folded ? level * load(scales + (row * columns + column + j) / group) : level;
    }
    T* const target = out + row * columns + column;
    if (vectors) {
        store_vector(target, levels);
        return;
    }
    for (int j = 0; j < unpack_columns; ++j)
        if (column + j < columns) store(target + j, levels[j]);
}

}  // namespace

void unpack_codes(CuStream stream, const Tensor& out, const CodeRows& coded) {
    const int64_t rows = out.shape[0], columns = out.shape[1];
    check_tensor("unpack_codes", "out", out, out.dtype, {rows, columns});
    if (coded.grid == Grid::none) throw std::logic_error("unpack_codes: the weight holds no codes");
    const int64_t threads = rows * ((columns + unpack_columns - 1) / unpack_columns);
    with_compute_type("unpack_codes", out.dtype, [&]<typename T>() {
        with_grid(coded.grid, [&]<Grid grid>() {
            if constexpr (grid != Grid::none)
                CU_LAUNCH((unpack_codes_kernel<grid, T>), blocks_for(threads, unpack_threads), unpack_threads,
                          0, stream, out.as<T>(), coded.codes, coded.row_bytes, coded.scales, rows, columns,
                          coded.group, vector_aligned<unpack_columns>(out.as<T>(), columns));
        });
    });
}

void unpack_codes(CuStream stream, const Tensor& out, const ComputeWeight& weight) {
    check_tensor("unpack_codes", "out", out, DType::bfloat16, {weight.rows, weight.columns});
    if (weight.codes == Grid::none) throw std::logic_error("unpack_codes: the weight holds no codes");
    const WeightLayout layout = layout_of(weight);
    unpack_codes(stream, out,
                 {static_cast<const uint8_t*>(layout.numbers), layout.row_bytes, layout.group_scale,
                  weight.codes, weight.code_group});
}

}  // namespace train_qat::CU_BACKEND
