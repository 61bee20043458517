// Adds the parts of a product up, in the order of the splits:
//     out = part 0 + part 1 + ...
//
// Floor: 4 splits + 2 bytes a number; the parts are in the cache still. A thread adds four neighbours.
#include "kernels/cuda/matmul/split_sum.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 128, width = 4;

// count: a multiple of `width`.
__global__ void __launch_bounds__(threads)
    add_splits_kernel(bfloat16* out, const float* partial, int64_t count, int splits) {
    const int64_t first = (int64_t{blockIdx.x} * threads + threadIdx.x) * width;
    if (first >= count) return;
    float sum[width] = {};
    for (int split = 0; split < splits; ++split) {
        const Vector<float, width> part = load_vector<width>(partial + split * count + first);
        CU_UNROLL
        for (int i = 0; i < width; ++i) sum[i] += part[i];
    }
    Vector<uint32_t, width / 2> packed;
    CU_UNROLL
    for (int i = 0; i < width / 2; ++i) packed[i] = pack_bfloat16(sum[2 * i], sum[2 * i + 1]);
    store_vector(reinterpret_cast<uint32_t*>(out + first), packed);
}

}  // namespace

void add_splits(CuStream stream, const Tensor& out, const float* partial, int splits) {
    const int64_t count = out.elements();
    CU_LAUNCH(add_splits_kernel, blocks_for(count, threads * width), threads, 0, stream, out.as<bfloat16>(),
              partial, count, splits);
}

}  // namespace train_qat::CU_BACKEND
