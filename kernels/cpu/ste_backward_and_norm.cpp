// The straight-through estimator's backward pass and the gradient norm, once per optimizer step.
//
// The micro-batches have summed dq, the gradient with respect to the levels. Because the inside mask and the
// scale gradient are linear in dŵ = dq / s, and w and s have not changed since the last step, doing both here
// once is the same as doing them in every micro-batch.
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/weight_update.h"

namespace train_qat {

namespace {

// Sums of so many terms are taken in float32, those of such sums in double.
constexpr int64_t terms_in_float32 = 1024;

double squared_norm(const float* values, int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
    return sum;
}

// One group of weights with one scale. Returns the sum of squares.
template <Grid grid>
double backward_group(const float* __restrict weights, float* __restrict gradient, int64_t count, float scale,
                      bool gradient_of_levels, float factor, float* scale_gradient) {
    using Traits = GridTraits<grid>;
    const float to_weight_gradient = gradient_of_levels ? 1.0f / scale : 1.0f;
    double squares = 0, scale_sum = 0;
    for (int64_t first = 0; first < count; first += terms_in_float32) {
        const int64_t last = std::min(count, first + terms_in_float32);
        float some_squares = 0, some_scale_sum = 0;
#pragma omp simd reduction(+ : some_squares, some_scale_sum)
        for (int64_t i = first; i < last; ++i) {
            const float ratio = weights[i] / scale;
            const float d = gradient[i] * to_weight_gradient;
            const float passed = Traits::inside(ratio) ? d : 0.0f;
            gradient[i] = passed;
            some_squares += passed * passed;
            some_scale_sum += d * Traits::scale_gradient(ratio);
        }
        squares += static_cast<double>(some_squares);
        scale_sum += static_cast<double>(some_scale_sum);
    }
    *scale_gradient = static_cast<float>(scale_sum * factor);
    return squares + static_cast<double>(*scale_gradient) * *scale_gradient;
}

}  // namespace

void CpuBackend::compute(const SteBackwardAndNorm& args) {
    for (const ParameterRows& parameter : args.parameters) check_has_master(args.name, parameter);
    const std::vector<RowBlock> blocks = row_blocks(args.parameters);
    std::vector<double> block_sums(blocks.size());
    parallel_for(static_cast<int64_t>(blocks.size()), 1, [&](int64_t index, int64_t) {
        const RowBlock& block = blocks[index];
        const ParameterRows& p = args.parameters[block.parameter];
        double sum = 0;
        with_grid(p.grid, [&]<Grid grid>() {
            if constexpr (grid == Grid::none) {
                sum = squared_norm(p.gradient + block.first * p.columns,
                                   (block.last - block.first) * p.columns);
            } else {
                const int64_t groups = p.columns / p.group;
                for (int64_t i = block.first * groups; i < block.last * groups; ++i)
                    sum += backward_group<grid>(p.master + i * p.group, p.gradient + i * p.group, p.group,
                                                effective_scale(p.scale[i]), groups == 1,
                                                p.scale_gradient_factor, p.scale_gradient + i);
            }
        });
        block_sums[index] = sum;
    });
    std::vector<double> totals(args.parameters.size(), 0.0);
    for (size_t index = 0; index < blocks.size(); ++index)
        totals[blocks[index].parameter] += block_sums[index];
    for (size_t i = 0; i < totals.size(); ++i) args.squares.as<float>()[i] = static_cast<float>(totals[i]);
}

}  // namespace train_qat
