// Sums: of a vector, for losses; of partial sums over rows, for gradients of weights and biases.
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

void CpuBackend::compute(const Sum& args) {
    double result = args.accumulate ? static_cast<double>(*args.total.as<float>()) : 0.0;
    for (int64_t i = 0; i < args.values.shape[0]; ++i) result += args.values.as<float>()[i];
    *args.total.as<float>() = static_cast<float>(result);
}

void CpuBackend::sum_partials(float* out, const float* partials, int64_t count, int64_t columns,
                              bool accumulate) const {
    constexpr int64_t columns_per_block = 64;
    parallel_for(columns, columns_per_block, [&](int64_t first, int64_t last) {
        double totals[columns_per_block];
        const float* block = partials + first;
        for (int64_t c = 0; c < last - first; ++c) totals[c] = accumulate ? out[first + c] : 0.0f;
        for (int64_t p = 0; p < count; ++p)
            for (int64_t c = 0; c < last - first; ++c) totals[c] += block[p * columns + c];
        for (int64_t c = 0; c < last - first; ++c) out[first + c] = static_cast<float>(totals[c]);
    });
}

}  // namespace train_qat
