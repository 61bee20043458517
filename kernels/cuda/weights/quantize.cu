// Quantization of weights: initial scales, and levels or their packed codes where matmuls read them. Grids:
// kernels/grid.h, codes: kernels/codes.h. With the weights w of a group,
//     initialize_scales   s = max(smallest_scale, statistic(|w|) / divisor)
//     quantize            q = level(w / s)
//
// Floor: initialize_scales reads each weight and writes each scale once; quantize reads weights and scales and writes
// levels and effective scales once. Both go over all parameters in one launch (kernels/cuda/weights/weight_update.cuh).
#include "kernels/cuda/weights/weight_update.cuh"
#include "kernels/cuda/weights/weights.h"

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

}  // namespace

void initialize_scales(Device& device, WeightTables& tables, const InitializeScales& arguments) {
    std::vector<ParameterRows> quantized;
    for (const ParameterRows& parameter : arguments.parameters)
        if (parameter.grid != Grid::none) quantized.push_back(parameter);
    if (quantized.empty()) return;
    const UpdateTables uploaded = tables.by_groups(quantized);
    CU_LAUNCH(initialize_scales_kernel, static_cast<unsigned>(uploaded.block_count), update_threads, 0,
              device.stream(), uploaded);
}

void quantize(CuStream stream, const UpdateTables& tables) {
    CU_LAUNCH(quantize_kernel, static_cast<unsigned>(tables.block_count), update_threads, 0, stream, tables);
}

void quantize(Device& device, WeightTables& tables, const Quantize& arguments) {
    if (arguments.parameters.empty()) return;
    quantize(device.stream(), tables.by_steps(arguments.parameters));
}

}  // namespace train_qat::CU_BACKEND
