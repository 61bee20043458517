// Quantization of weights: initial scales, and levels into the matmuls' copy of the weights. Grids:
// kernels/grid.h.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/weight_update.h"

namespace train_qat {

namespace {

template <Grid grid>
float initial_scale(const float* weights, int64_t count) {
    using Traits = GridTraits<grid>;
    double sum = 0;
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float magnitude = std::fabs(weights[i]);
        sum += magnitude;
        largest = std::max(largest, magnitude);
    }
    const float statistic = Traits::statistic == ScaleStatistic::mean_absolute
                                ? static_cast<float>(sum / static_cast<double>(count))
                                : largest;
    return std::max(statistic / Traits::divisor, smallest_scale);
}

}  // namespace

void CpuBackend::compute(const InitializeScales& args) {
    for (const ParameterRows& parameter : args.parameters) {
        if (parameter.grid == Grid::none) continue;
        check_has_master(args.name, parameter);
        with_grid(parameter.grid, [&]<Grid grid>() {
            if constexpr (grid != Grid::none) {
                const int64_t group = parameter.group;
                parallel_for(parameter.scales(), rows_per_block(group), [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i)
                        parameter.scale[i] = initial_scale<grid>(parameter.master + i * group, group);
                });
            }
        });
    }
}

void CpuBackend::compute(const Quantize& args) {
    for (const ParameterRows& parameter : args.parameters) check_has_master(args.name, parameter);
    update_and_quantize(args.parameters, [](const ParameterRows&, int64_t, int64_t) {});
}

}  // namespace train_qat
