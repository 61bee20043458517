// AdamW (arXiv 1711.05101) on weights and scales, and the new levels, in one pass over memory. With the
// clipped gradient g,
//     m <- beta1 m + (1 - beta1) g
//     v <- beta2 v + (1 - beta2) g²
//     u  = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
//     w <- w - learning_rate (u + weight_decay w)
//     s <- max(smallest_scale, s (1 - scale_learning_rate u))
// and then q = level(w / s). Weights without a float32 master are rounded to bfloat16 by chance
// (stochastic_rounding.cuh); their levels are those of the rounded weights.
//
// Floor: weights and both moments read and written, gradients read, levels written, once: with float32 masters and
// packed codes 28 bytes and a level each. All parameters in one launch (kernels/cuda/weights/weight_update.cuh), after
// one block has found the clipping factor.

#include "kernels/cuda/weights/stochastic_rounding.cuh"
#include "kernels/cuda/weights/weight_update.cuh"
#include "kernels/cuda/weights/weights.h"

namespace train_qat::CU_BACKEND {

namespace {

// The new weight. keep: 1 - learning rate * weight decay; relative: the step is a fraction of the value.
template <bool relative>
CU_DEVICE float adamw(float weight, float gradient, float& first_moment, float& second_moment,
                      const AdamWConstants& u, float keep) {
    const float m = u.beta1 * first_moment + (1.0f - u.beta1) * gradient;
    const float v = u.beta2 * second_moment + (1.0f - u.beta2) * gradient * gradient;
    first_moment = m;
    second_moment = v;
    const float step = u.step_size * m / (sqrtf(v) * u.inverse_root + u.epsilon);
    const float w = weight * keep - (relative ? step * weight : step);
    return w < u.lowest ? u.lowest : w;
}

// Loads, steps and stores scales and weights of one parameter.
struct AdamW {
    const AdamWConstants& weight_update;
    const AdamWConstants& scale_update;
    float keep;             // 1 - learning rate * weight decay
    float gradient_factor;  // clipping
    uint64_t step;

    CU_DEVICE float scale(const UpdateParameter& p, int64_t i) const {
        float m = load(p.scale_first_moment + i), v = load(p.scale_second_moment + i);
        const float gradient = load(p.scale_gradient + i) * gradient_factor;
        const float scale = adamw<true>(load(p.scale + i), gradient, m, v, scale_update, 1.0f);
        store(p.scale + i, scale);
        store(p.scale_first_moment + i, m);
        store(p.scale_second_moment + i, v);
        return scale;
    }

    template <int width, typename Master>
    CU_DEVICE Vector<float, width> weights(const UpdateParameter& p, int64_t element) const {
        Vector<float, width> w = load_weights<width, Master>(p, element);
        const Vector<float, width> g = load_vector<width>(p.gradient + element);
        Vector<float, width> m = load_vector<width>(p.first_moment + element);
        Vector<float, width> v = load_vector<width>(p.second_moment + element);
        CU_UNROLL
        for (int j = 0; j < width; ++j)
            w[j] = adamw<false>(w[j], g[j] * gradient_factor, m[j], v[j], weight_update, keep);
        store_vector(p.first_moment + element, m);
        store_vector(p.second_moment + element, v);
        if constexpr (std::is_same_v<Master, float>) {
            store_vector(p.master + element, w);
        } else {
            const Vector<bfloat16, width> narrow =
                round_by_chance(w, p.first_element + element, p.number, step);
            store_vector(p.narrow_master + element, narrow);
            CU_UNROLL
            for (int j = 0; j < width; ++j) w[j] = static_cast<float>(narrow[j]);
        }
        return w;
    }
};

// clip_factor: (1)
__global__ void __launch_bounds__(update_threads)
    adamw_and_quantize_kernel(const UpdateTables tables, const AdamWConstants weight_update,
                              const AdamWConstants scale_update, const float* clip_factor, int64_t step) {
    update_row_block(tables, [&](const UpdateParameter& p, const RowBlock&) {
        return AdamW{weight_update, scale_update, p.decay ? weight_update.keep : 1.0f, load(clip_factor),
                     static_cast<uint64_t>(step)};
    });
}

// clip_factor[0] = min(1, clip_norm / sqrt(sum of squares)), by one block. A NaN norm clips nothing: it is to
// be seen in the weights.
__global__ void __launch_bounds__(update_threads)
    clip_factor_kernel(float* clip_factor, const float* squares, int64_t count, float clip_norm) {
    CU_SHARED(scratch, double[update_warps]);
    double total = 0;
    for (int64_t i = threadIdx.x; i < count; i += update_threads)
        total += static_cast<double>(load(squares + i));
    total = block_sum<update_threads>(total, scratch);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(total);
    store(clip_factor, clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f);
}

}  // namespace

void adamw_and_quantize(Device& device, WeightTables& tables, const AdamwAndQuantize& arguments) {
    if (arguments.parameters.empty()) return;
    const AdamWStep& step = arguments.step;
    const AdamWConstants weights = constants_of_weights(step, true);
    const AdamWConstants scales = constants_of_scales(step);

    const UpdateTables uploaded = tables.by_steps(arguments.parameters);
    auto* const clip_factor = static_cast<float*>(device.scratch(sizeof(float)));
    CU_LAUNCH(clip_factor_kernel, 1, update_threads, 0, device.stream(), clip_factor,
              arguments.squares.as<float>(), arguments.squares.shape[0], step.clip_norm);
    CU_LAUNCH(adamw_and_quantize_kernel, static_cast<unsigned>(uploaded.block_count), update_threads, 0,
              device.stream(), uploaded, weights, scales, clip_factor, step.step);
}

}  // namespace train_qat::CU_BACKEND
