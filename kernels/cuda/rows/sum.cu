// The sum of a vector, for losses, in double:
//     total (+)= sum_i values[i]
//
// Floor: the values once. n is the number of rows, some 64 KiB of losses: the launch costs more than the memory
// traffic, and a second block would need a second launch, so one block does it.
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 1024;

__global__ void __launch_bounds__(threads)
    sum_values(float* total, const float* values, int64_t count, bool accumulate) {
    CU_SHARED(scratch, double[threads / 32]);
    constexpr int in_flight = 8;
    double sum = 0;
    for (int64_t first = threadIdx.x; first < count; first += in_flight * threads) {
        float value[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int64_t index = first + i * threads;
            value[i] = index < count ? load(values + index) : 0.0f;
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) sum += value[i];
    }
    sum = block_sum<threads>(sum, scratch);
    if (threadIdx.x == 0) {
        const double before = accumulate ? static_cast<double>(load(total)) : 0.0;
        store(total, static_cast<float>(before + sum));
    }
}

}  // namespace

void sum(Device& device, const Sum& a) {
    CU_LAUNCH(sum_values, 1, threads, 0, device.stream(), a.total.as<float>(), a.values.as<float>(),
              a.values.shape[0], a.accumulate);
}

}  // namespace train_qat::CU_BACKEND
