// Quantization of weights: initial scales, and levels into the matmuls' copy of the weights. Grids:
// kernels/grid.h.
#include <cmath>
#include <cstdlib>

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

void CpuBackend::initialize_scales(std::span<const ParameterRows> parameters) {
    for (const ParameterRows& parameter : parameters) {
        if (parameter.grid == Grid::none) continue;
        check_parameter("initialize_scales", parameter);
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

void CpuBackend::quantize(std::span<const ParameterRows> parameters) {
    for (const ParameterRows& parameter : parameters) check_parameter("quantize", parameter);
    update_and_quantize(parameters, [](const ParameterRows&, int64_t, int64_t) {});
}

void check_parameter(const char* operation, const ParameterRows& p) {
    const auto require = [operation](bool condition, const char* what) {
        if (!condition) throw std::logic_error(std::string(operation) + ": " + what);
    };
    require(p.rows > 0 && p.columns > 0 && p.master != nullptr,
            "a parameter needs rows, columns and weights");
    if (p.grid != Grid::none) {
        require(p.group > 0 && p.columns % p.group == 0, "the group must divide the columns of a parameter");
        require(p.scale != nullptr, "a quantized parameter needs scales");
    }
    if (p.compute == nullptr) return;
    require(p.compute->columns == p.columns && p.first_row >= 0 && p.first_row + p.rows <= p.compute->rows,
            "a parameter must lie within its compute weight");
    require(p.compute->storage != nullptr && p.compute->scale_storage != nullptr,
            "a compute weight needs storage for levels and scales");
}

void check_gradients(const char* operation, const ParameterRows& p) {
    check_parameter(operation, p);
    if (p.gradient == nullptr || (p.grid != Grid::none && p.scale_gradient == nullptr))
        throw std::logic_error(std::string(operation) +
                               ": a parameter needs gradients of its weights and scales");
}

void check_moments(const char* operation, const ParameterRows& p) {
    check_gradients(operation, p);
    if (p.first_moment == nullptr || p.second_moment == nullptr ||
        (p.grid != Grid::none && (p.scale_first_moment == nullptr || p.scale_second_moment == nullptr)))
        throw std::logic_error(std::string(operation) +
                               ": a parameter needs moments of its weights and scales");
}

}  // namespace train_qat
