// Quantization of weights: initial scales, levels - or their packed codes - where matmuls read them, and
// codes back into numbers. Grids: kernels/grid.h, codes: kernels/codes.h, the common walk over all
// parameters: kernels/cuda/weight_update.cuh.
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weight_update.cuh"

namespace train_qat::CU_BACKEND {

namespace {

// scale = max(smallest_scale, statistic(|w| of the group) / divisor)
template <Grid grid, int width, typename Master>
CU_DEVICE void initialize_groups(const UpdateParameter& p, const RowBlock& block) {
    using Traits = GridTraits<grid>;
    for_each_group<width>(p, block, [&](const Group& group) {
        double sum = 0;
        float largest = 0;
        for (int k = group.exists ? group.first : p.group; k < p.group; k += group.stride) {
            const Vector<float, width> w = load_weights<width, Master>(p, group.element + k);
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float magnitude = fabsf(w[j]);
                if constexpr (Traits::statistic == ScaleStatistic::mean_absolute)
                    sum += static_cast<double>(magnitude);
                else
                    largest = magnitude > largest ? magnitude : largest;
            }
        }
        float statistic;
        if constexpr (Traits::statistic == ScaleStatistic::mean_absolute)
            statistic = static_cast<float>(team_sum(sum, p.lanes_per_group) / static_cast<double>(p.group));
        else
            statistic = team_max(largest, p.lanes_per_group);
        const float scale = statistic / Traits::divisor;
        if (group.leads) store(p.scale + group.index, scale < smallest_scale ? smallest_scale : scale);
    });
}

// Room for 64 registers: with fewer the divisions spill.
__global__ void __launch_bounds__(update_threads, 4) initialize_scales_kernel(const UpdateTables tables) {
    const RowBlock block = load(tables.row_blocks + blockIdx.x);
    const UpdateParameter p = load(tables.parameters + block.parameter);
    with_types(p, [&]<Grid grid, int width, typename Master>() {
        if constexpr (grid != Grid::none) initialize_groups<grid, width, Master>(p, block);
    });
}

// The step that leaves weights and scales as they are.
struct Unchanged {
    CU_DEVICE float scale(const UpdateParameter& p, int64_t i) const { return load(p.scale + i); }
    template <int width, typename Master>
    CU_DEVICE Vector<float, width> weights(const UpdateParameter& p, int64_t element) const {
        return load_weights<width, Master>(p, element);
    }
};

__global__ void __launch_bounds__(update_threads, 4) quantize_kernel(const UpdateTables tables) {
    update_row_block(tables, [](const UpdateParameter&, const RowBlock&) { return Unchanged(); });
}

constexpr int unpack_threads = 256, unpack_columns = 8;

// Eight codes, `bits` bytes, by each thread. out: (N, K); codes: (N, row_bytes); scales: (N, K / group), or
// null: the levels themselves
template <Grid grid>
__global__ void __launch_bounds__(unpack_threads)
    unpack_codes_kernel(bfloat16* out, const uint8_t* codes, int64_t row_bytes, const float* scales,
                        int64_t rows, int64_t columns, int64_t group, bool vectors) {
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
    Vector<bfloat16, unpack_columns> levels;
    CU_UNROLL
    for (int j = 0; j < unpack_columns; ++j) {
        const uint32_t code = packed[j * bits / 8] >> (j * bits % 8) & ((1u << bits) - 1u);
        const float level = level_of_code<grid>(code);
        const bool folded = scales != nullptr && column + j < columns;
        levels[j] = folded ? level * load(scales + (row * columns + column + j) / group) : level;
    }
    bfloat16* const target = out + row * columns + column;
    if (vectors) {
        store_vector(target, levels);
        return;
    }
    for (int j = 0; j < unpack_columns; ++j)
        if (column + j < columns) store(target + j, levels[j]);
}

}  // namespace

void unpack_codes(CuStream stream, const Tensor& out, const ComputeWeight& weight) {
    check_tensor("unpack_codes", "out", out, DType::bfloat16, {weight.rows, weight.columns});
    if (weight.codes == Grid::none) throw std::logic_error("unpack_codes: the weight holds no codes");
    const int64_t rows = weight.rows, columns = weight.columns;
    const auto* const storage = static_cast<const uint8_t*>(weight.storage);
    const float* const scales =
        weight.code_group == columns
            ? nullptr
            : reinterpret_cast<const float*>(storage + code_scales_offset(rows, columns, weight.codes));
    const int64_t threads = rows * ((columns + unpack_columns - 1) / unpack_columns);
    with_grid(weight.codes, [&]<Grid grid>() {
        if constexpr (grid != Grid::none)
            CU_LAUNCH((unpack_codes_kernel<grid>), blocks_for(threads, unpack_threads), unpack_threads, 0,
                      stream, out.as<bfloat16>(), storage, code_row_bytes(columns, code_bits(grid)), scales,
                      rows, columns, weight.code_group,
                      vector_aligned<unpack_columns>(out.as<bfloat16>(), columns));
    });
}

void CudaBackend::initialize_scales(std::span<const ParameterRows> parameters) {
    std::vector<ParameterRows> quantized;
    for (const ParameterRows& parameter : parameters) {
        if (parameter.grid == Grid::none) continue;
        check_parameter("initialize_scales", parameter);
        quantized.push_back(parameter);
    }
    if (quantized.empty()) return;
    const UpdateTables tables = updates_->by_groups(quantized);
    CU_LAUNCH(initialize_scales_kernel, static_cast<unsigned>(tables.block_count), update_threads, 0,
              stream(), tables);
}

void CudaBackend::quantize(std::span<const ParameterRows> parameters) {
    for (const ParameterRows& parameter : parameters) check_parameter("quantize", parameter);
    if (parameters.empty()) return;
    const UpdateTables tables = updates_->by_steps(parameters);
    CU_LAUNCH(quantize_kernel, static_cast<unsigned>(tables.block_count), update_threads, 0, stream(),
              tables);
}

}  // namespace train_qat::CU_BACKEND
