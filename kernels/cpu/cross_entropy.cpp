// Softmax cross entropy and its gradient for a chunk of rows, straight from the logits.
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/row_vectors.h"

namespace train_qat {

namespace {

// A row's exponentials are kept from the sum to the gradient, those of a block of logits relative to the block's maximum:
// so none overflows, and none is taken twice. Partial sums keep the rounding small whatever the vocabulary.
constexpr int64_t logits_per_block = 512;
int64_t blocks_of(int64_t vocabulary) {
    return (vocabulary + logits_per_block - 1) / logits_per_block;
}

// Of one row, in a thread's scratch memory.
struct RowExponentials {
    float* values;  // (vocabulary) e^(l[v] - maximum of the block)
    float* maxima;  // (blocks) of logits
    float* sums;    // (blocks) of values; then e^(maximum of the block - maximum of the row)

    static int64_t floats(int64_t vocabulary) { return vocabulary + 2 * blocks_of(vocabulary); }
    RowExponentials(float* scratch, int64_t vocabulary)
        : values(scratch), maxima(scratch + vocabulary), sums(maxima + blocks_of(vocabulary)) {}
};

struct RowLoss {
    double sum;  // of e^(l[v] - maximum of the row)
    float loss;
};

// Exponentials of `count` logits, their sum and the logits' maximum. A block of -infinity is one of zeros.
template <bool scaled, typename L>
void exponentials_of_block(float* values, float& maximum, float& sum, const L* logits, const float* scales,
                           int64_t count) {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    const auto logit = [&](int64_t v, auto at) {
        const FloatVector unscaled = at.load(logits + v, nothing);
        return scaled ? unscaled * at.load(scales + v, 1.0f) : unscaled;
    };
    FloatVector largest = FloatVector{} + std::numeric_limits<float>::lowest();
    for_vectors(count, [&](int64_t v, auto at) { largest = larger_of(logit(v, at), largest); });
    largest = largest_of_lanes(largest);
    FloatVector total{};
    for_vectors(count, [&](int64_t v, auto at) {
        const FloatVector value = exponential(logit(v, at) - largest);
        at.store(values + v, value);
        total += value;
    });
    maximum = largest[0];
    sum = sum_of_lanes(total)[0];
}

// NaN and +infinity among the logits come out as NaN. Not inlined: with and without a gradient the losses come out of the
// very same instructions.
template <bool scaled, typename L>
[[gnu::noinline]] RowLoss row_loss(const RowExponentials& row, const L* logits, const float* scales,
                                   int64_t target, int64_t count) {
    const int64_t blocks = blocks_of(count);
    float maximum = std::numeric_limits<float>::lowest();
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = b * logits_per_block;
        prefetch(logits + first + logits_per_block, logits_per_block);
        exponentials_of_block<scaled>(row.values + first, row.maxima[b], row.sums[b], logits + first,
                                      scaled ? scales + first : nullptr,
                                      std::min(logits_per_block, count - first));
        maximum = std::max(maximum, row.maxima[b]);
    }
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        const float weight = std::exp(row.maxima[b] - maximum);
        sum += static_cast<double>(row.sums[b]) * weight;
        row.sums[b] = weight;
    }
    const float unscaled = logits[target];
    const float at_target = scaled ? scales[target] * unscaled : unscaled;
    return {sum, maximum + static_cast<float>(std::log(sum)) - at_target};
}

// factor * (probability - [v is the target]), the probability being an exponential over their sum.
template <bool scaled, typename T>
void gradient_row(T* d_logits, const RowExponentials& row, const float* scales, double sum, int64_t target,
                  float factor, int64_t count) {
    for (int64_t first = 0; first < count; first += logits_per_block) {
        const float multiple = static_cast<float>(row.sums[first / logits_per_block] / sum * factor);
        for_vectors(std::min(logits_per_block, count - first), [&](int64_t v, auto at) {
            const FloatVector d = at.load(row.values + first + v) * multiple;
            at.store(d_logits + first + v, scaled ? d * at.load(scales + first + v) : d);
        });
    }
    const double probability = row.values[target] * (row.sums[target / logits_per_block] / sum);
    const float at_target = static_cast<float>(probability - 1.0) * factor;
    d_logits[target] = scaled ? at_target * scales[target] : at_target;
}

// d_logits may be logits: they have been read when their gradient is written.
template <bool scaled, typename T, typename L>
float process_row(const RowExponentials& row, T* d_logits, const L* logits, const float* scales,
                  int64_t target, float factor, int64_t count) {
    const RowLoss result = row_loss<scaled>(row, logits, scales, target, count);
    if (d_logits != nullptr) gradient_row<scaled>(d_logits, row, scales, result.sum, target, factor, count);
    return result.loss;
}

}  // namespace

void CpuBackend::compute(const CrossEntropy& args) {
    const int64_t rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
    const float* scales = args.column_scale.as<float>();
    // T: of d_logits, L: of logits.
    const auto process_rows = [&]<typename T, typename L>() {
        parallel_for(rows, rows_per_block(vocabulary), [&](int64_t first, int64_t last) {
            const RowExponentials exponentials(thread_scratch(RowExponentials::floats(vocabulary)),
                                               vocabulary);
            for (int64_t m = first; m < last; ++m) {
                const L* row = args.logits.as<L>() + m * vocabulary;
                const int64_t target = args.targets.as<int32_t>()[m];
                T* gradient = args.d_logits.empty() ? nullptr : args.d_logits.as<T>() + m * vocabulary;
                args.losses.as<float>()[m] =
                    scales == nullptr ? process_row<false>(exponentials, gradient, row, scales, target,
                                                           args.gradient_factor, vocabulary)
                                      : process_row<true>(exponentials, gradient, row, scales, target,
                                                          args.gradient_factor, vocabulary);
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
