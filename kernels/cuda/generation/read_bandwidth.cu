// How fast memory of a size is read again and again, caches included: the bound of generation.
//
// Each thread sums words of 16 bytes, several loads on their way at a time; sums are written so that nothing is left out.
#include <algorithm>
#include <chrono>

#include "kernels/cuda/generation/generation.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 256;
constexpr int in_flight = 8;

__global__ void __launch_bounds__(threads)
    read_words(uint32_t* sums, const uint32_t* words, int64_t vectors) {
    const int64_t first = int64_t{blockIdx.x} * threads * in_flight + threadIdx.x;
    Vector<uint32_t, 4> read[in_flight] = {};
    CU_UNROLL
    for (int i = 0; i < in_flight; ++i)
        if (first + i * threads < vectors) read[i] = load_vector<4>(words + 4 * (first + i * threads));
    uint32_t sum = 0;
    CU_UNROLL
    for (int i = 0; i < in_flight; ++i) CU_UNROLL
    for (int j = 0; j < 4; ++j) sum += read[i][j];
    // The memory holds zeros.
    if (sum != 0) store(sums, sum);
}

}  // namespace

double read_bandwidth(Device& device, int64_t bytes) {
    constexpr int64_t least_bytes = 1 << 16;
    constexpr int repeats = 20;
    const int64_t vectors = std::max(bytes, least_bytes) / 16;
    const DeviceBuffer memory(device, vectors * 16), sums(device, 256);
    const auto read = [&](int times) {
        for (int i = 0; i < times; ++i)
            CU_LAUNCH(read_words, blocks_for(vectors, int64_t{threads} * in_flight), threads, 0,
                      device.stream(), static_cast<uint32_t*>(sums.data()),
                      static_cast<const uint32_t*>(memory.data()), vectors);
        device.runtime().synchronize();
    };
    read(1);
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    read(repeats);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return static_cast<double>(repeats) * static_cast<double>(vectors) * 16 / seconds;
}

}  // namespace train_qat::CU_BACKEND
