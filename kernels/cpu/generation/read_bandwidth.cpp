// How fast memory of a size is read again and again, caches included: the bound of generation.
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/platform/worker_pool.h"
#include "kernels/device_memory.h"

namespace train_qat {

namespace {

int64_t sum_of(const int64_t* __restrict numbers, int64_t count) {
    int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += numbers[i];
    return sum;
}

}  // namespace

double CpuBackend::read_bandwidth(int64_t bytes) {
    constexpr int64_t least_bytes = 1 << 16;
    const int64_t size = std::max(bytes, least_bytes);
    const DeviceMemory memory(*this, size);
    const auto* const numbers = static_cast<const int64_t*>(memory.data());
    const int64_t count = size / int64_t{8}, block = std::max<int64_t>(4096, count / (4 * threads_));
    std::vector<int64_t> sums(static_cast<size_t>(count / block + 1));
    using Clock = std::chrono::steady_clock;
    double best = 0, spent = 0;
    // The best of many: others use the machine too.
    while (spent < 0.1) {
        const Clock::time_point start = Clock::now();
        workers().run((count + block - 1) / block, [&](int64_t i) {
            sums[i] += sum_of(numbers + i * block, std::min(block, count - i * block));
        });
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::max(best, static_cast<double>(size) / std::max(seconds, 1e-9));
        spent += seconds + 1e-6;
    }
    // The memory holds zeros, which the compiler does not know.
    if (sums[0] != 0) throw std::logic_error("read_bandwidth: fresh memory is not zero");
    return best;
}

}  // namespace train_qat
