// AdamW (arXiv 1711.05101) on weights and scales, and the new levels, in one pass over memory.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/weight_update.h"

namespace train_qat {

namespace {

// gradient_factor: clipping; relative: the step is a fraction of the value.
template <bool relative>
void adamw(float* __restrict weights, const float* __restrict gradient, float* __restrict first_moment,
           float* __restrict second_moment, int64_t count, float gradient_factor, const AdamWConstants& u) {
    const float new1 = 1.0f - u.beta1, new2 = 1.0f - u.beta2;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const float g = gradient[i] * gradient_factor;
        const float m = u.beta1 * first_moment[i] + new1 * g;
        const float v = u.beta2 * second_moment[i] + new2 * g * g;
        first_moment[i] = m;
        second_moment[i] = v;
        const float step = u.step_size * m / (std::sqrt(v) * u.inverse_root + u.epsilon);
        const float w = weights[i] * u.keep - (relative ? step * weights[i] : step);
        weights[i] = w < u.lowest ? u.lowest : w;
    }
}

float clip_factor(const Tensor& squares, float clip_norm) {
    double total = 0;
    for (int64_t i = 0; i < squares.shape[0]; ++i) total += squares.as<float>()[i];
    const double norm = std::sqrt(total);
    return clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
}

}  // namespace

void CpuBackend::compute(const AdamwAndQuantize& args) {
    for (const ParameterRows& parameter : args.parameters) check_has_master(args.name, parameter);
    const float factor = clip_factor(args.squares, args.step.clip_norm);
    const AdamWConstants decayed = constants_of_weights(args.step, true);
    const AdamWConstants plain = constants_of_weights(args.step, false);
    const AdamWConstants scales = constants_of_scales(args.step);

    update_and_quantize(args.parameters, [&](const ParameterRows& p, int64_t first, int64_t last) {
        const int64_t begin = first * p.columns;
        adamw<false>(p.master + begin, p.gradient + begin, p.first_moment + begin, p.second_moment + begin,
                     (last - first) * p.columns, factor, p.decay ? decayed : plain);
        if (p.grid != Grid::none) {
            const int64_t groups = p.columns / p.group, scale = first * groups;
            adamw<true>(p.scale + scale, p.scale_gradient + scale, p.scale_first_moment + scale,
                        p.scale_second_moment + scale, (last - first) * groups, factor, scales);
        }
    });
}

}  // namespace train_qat
