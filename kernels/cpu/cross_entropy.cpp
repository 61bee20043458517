// Softmax cross entropy and its gradient for a chunk of rows, straight from the logits.
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/math.h"

namespace train_qat {

namespace {

template <bool scaled, typename L>
inline float logit(const L* logits, const float* scales, int64_t v) {
    const float unscaled = logits[v];
    return scaled ? scales[v] * unscaled : unscaled;
}

// log(sum_v e^l[v]), shifted by the maximum so that no exponential overflows. NaN and +infinity come out as
// NaN.
template <bool scaled, typename L>
float log_sum_exp_of(const L* __restrict logits, const float* __restrict scales, int64_t count) {
    float largest = logit<scaled>(logits, scales, 0);
#pragma omp simd reduction(max : largest)
    for (int64_t v = 0; v < count; ++v) {
        const float l = logit<scaled>(logits, scales, v);
        largest = l > largest ? l : largest;
    }
    // Partial sums keep the rounding small whatever the vocabulary.
    constexpr int64_t block = 512;
    double total = 0;
    for (int64_t first = 0; first < count; first += block) {
        const int64_t last = std::min(count, first + block);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = first; v < last; ++v) sum += exponential(logit<scaled>(logits, scales, v) - largest);
        total += sum;
    }
    return largest + static_cast<float>(std::log(total));
}

// d_logits may be logits: each is read before its place is written.
template <bool scaled, typename T, typename L>
void gradient_row(T* d_logits, const L* logits, const float* __restrict scales, float log_sum_exp,
                  int64_t target, float factor, int64_t count) {
    const float at_target =
        (exponential(logit<scaled>(logits, scales, target) - log_sum_exp) - 1.0f) * factor;
#pragma omp simd
    for (int64_t v = 0; v < count; ++v) {
        const float probability = exponential(logit<scaled>(logits, scales, v) - log_sum_exp);
        d_logits[v] = scaled ? probability * factor * scales[v] : probability * factor;
    }
    d_logits[target] = scaled ? at_target * scales[target] : at_target;
}

struct RowLoss {
    float log_sum_exp, loss;
};

// Not inlined: with and without a gradient the losses come out of the very same instructions.
template <bool scaled, typename L>
[[gnu::noinline]] RowLoss row_loss(const L* logits, const float* scales, int64_t target, int64_t count) {
    const float log_sum_exp = log_sum_exp_of<scaled>(logits, scales, count);
    return {log_sum_exp, log_sum_exp - logit<scaled>(logits, scales, target)};
}

template <bool scaled, typename T, typename L>
float process_row(T* d_logits, const L* logits, const float* scales, int64_t target, float factor,
                  int64_t count) {
    const RowLoss row = row_loss<scaled>(logits, scales, target, count);
    if (d_logits != nullptr)
        gradient_row<scaled>(d_logits, logits, scales, row.log_sum_exp, target, factor, count);
    return row.loss;
}

}  // namespace

void CpuBackend::compute(const CrossEntropy& args) {
    const int64_t rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
    const float* scales = args.column_scale.as<float>();
    // T: of d_logits, L: of logits.
    const auto process_rows = [&]<typename T, typename L>() {
        parallel_for(rows, rows_per_block(vocabulary), [&](int64_t first, int64_t last) {
            for (int64_t m = first; m < last; ++m) {
                const L* row = args.logits.as<L>() + m * vocabulary;
                const int64_t target = args.targets.as<int32_t>()[m];
                T* gradient = args.d_logits.empty() ? nullptr : args.d_logits.as<T>() + m * vocabulary;
                args.losses.as<float>()[m] =
                    scales == nullptr
                        ? process_row<false>(gradient, row, scales, target, args.gradient_factor, vocabulary)
                        : process_row<true>(gradient, row, scales, target, args.gradient_factor, vocabulary);
            }
        });
    };
    if (args.logits.dtype == DType::bfloat16)
        process_rows.template operator()<bfloat16, bfloat16>();
    else
        with_compute_type(args.name, args.d_logits.dtype,
                          [&]<typename T>() { process_rows.template operator()<T, float>(); });
}

}  // namespace train_qat
