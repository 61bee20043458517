// Adds the parts of a product up, in the order of the splits:
//     out = part 0 + part 1 + ... (+ out)
//
// Floor: 4 splits + 2, 4 or 8 bytes a number; of a few tokens' products the parts are in the cache still. A thread adds four
// neighbours.
#include "kernels/cuda/hopper_matmul/split_sum.h"

#include <stdexcept>
#include <type_traits>

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 128, width = 4;

// count: a multiple of `width`. accumulate: float32 alone.
template <typename T, bool accumulate>
__global__ void __launch_bounds__(threads)
    add_splits_kernel(T* out, const float* partial, int64_t count, int splits) {
    const int64_t first = (int64_t{blockIdx.x} * threads + threadIdx.x) * width;
    if (first >= count) return;
    Vector<float, width> sum = load_vector<width>(partial + first);
    for (int split = 1; split < splits; ++split) {
        const Vector<float, width> part = load_vector<width>(partial + split * count + first);
        CU_UNROLL
        for (int i = 0; i < width; ++i) sum[i] += part[i];
    }
    if constexpr (accumulate) {
        const Vector<float, width> before = load_vector<width>(out + first);
        CU_UNROLL
        for (int i = 0; i < width; ++i) sum[i] += before[i];
    }
    if constexpr (std::is_same_v<T, float>) {
        store_vector<width>(out + first, sum);
    } else {
        Vector<uint32_t, width / 2> packed;
        CU_UNROLL
        for (int i = 0; i < width / 2; ++i) packed[i] = pack_bfloat16(sum[2 * i], sum[2 * i + 1]);
        store_vector(reinterpret_cast<uint32_t*>(out + first), packed);
    }
}

template <typename T, bool accumulate>
void launch(CuStream stream, const Tensor& out, const float* partial, int splits) {
    const int64_t count = out.elements();
    CU_LAUNCH((add_splits_kernel<T, accumulate>), blocks_for(count, threads * width), threads, 0, stream,
              out.as<T>(), partial, count, splits);
}

}  // namespace

void add_splits(CuStream stream, const Tensor& out, const float* partial, int splits, bool accumulate) {
    if (out.dtype == DType::bfloat16) {
        if (accumulate) throw std::logic_error("add_splits: bfloat16 sums do not go on");
        launch<bfloat16, false>(stream, out, partial, splits);
    } else if (accumulate) {
        launch<float, true>(stream, out, partial, splits);
    } else {
        launch<float, false>(stream, out, partial, splits);
    }
}

}  // namespace train_qat::CU_BACKEND
