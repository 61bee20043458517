// Attention of few new positions to all before them, whose keys (G, D, T) and values (G, T, D) are cached.
//
// Floor: the caches read once up to the last position, for each group of queries. A block has one head of one new
// position and walks over the cached ones in tiles: scores of neighbouring positions in neighbouring threads, then values,
// each warp every fourth position, neighbouring numbers in neighbouring lanes. A tile's weights are those of a running
// softmax (arXiv 1805.02867). All sums have a fixed order.
#include <cmath>

#include "kernels/cuda/generation/generation.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 128;
constexpr int warps = threads / 32;
constexpr int tile = 256;  // cached positions
// Heads are any size: a lane has this many numbers of them at a time.
constexpr int lane_numbers = 4;
constexpr int slice = 32 * lane_numbers;

struct Sizes {
    int64_t heads, kv_heads, head_dim, capacity, position;
    CU_DEVICE int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Block (i, m): numbers threads * i ... of the keys of new position m.
__global__ void __launch_bounds__(threads) append(float* keys, float* values, const float* qkv, Sizes sizes) {
    const int64_t number = int64_t{blockIdx.x} * threads + threadIdx.x, m = blockIdx.y;
    if (number >= sizes.kv_heads * sizes.head_dim) return;
    const int64_t g = number / sizes.head_dim, d = number % sizes.head_dim, position = sizes.position + m;
    const float* const key = qkv + m * sizes.qkv_columns() + sizes.heads * sizes.head_dim + number;
    store(keys + (g * sizes.head_dim + d) * sizes.capacity + position, load(key));
    store(values + (g * sizes.capacity + position) * sizes.head_dim + d,
          load(key + sizes.kv_heads * sizes.head_dim));
}

template <typename Combine>
CU_DEVICE float over_block(float of_warp, float* scratch, Combine&& combine) {
    if (lane_index() == 0) store_shared(scratch + warp_index(), of_warp);
    block_sync();
    float result = load_shared(scratch);
    CU_UNROLL
    for (int warp = 1; warp < warps; ++warp) result = combine(result, load_shared(scratch + warp));
    block_sync();
    return result;
}

// Block (h, m, j): numbers slice * j ... of head h of new position m.
__global__ void __launch_bounds__(threads)
    attend(float* y, const float* keys, const float* values, const float* qkv, float factor, Sizes sizes) {
    CU_SHARED(weights, float[tile]);
    CU_SHARED(scratch, float[warps]);
    CU_SHARED(parts, float[warps * slice]);
    const int64_t D = sizes.head_dim, T = sizes.capacity, h = blockIdx.x, m = blockIdx.y;
    const int64_t g = h / (sizes.heads / sizes.kv_heads), count = sizes.position + m + 1;
    const float* const query = qkv + m * sizes.qkv_columns() + h * D;
    const float* const own_keys = keys + g * D * T;
    const float* const own_values = values + g * T * D + int64_t{blockIdx.z} * slice;
    const int64_t width = D - int64_t{blockIdx.z} * slice;  // numbers from this slice on
    float largest = -INFINITY, denominator = 0, sums[lane_numbers] = {};
    for (int64_t first = 0; first < count; first += tile) {
        const int here = count - first < tile ? static_cast<int>(count - first) : tile;
        float tile_largest = -INFINITY, scores[tile / threads];
        CU_UNROLL
        for (int i = 0; i < tile / threads; ++i) {
            const int u = i * threads + static_cast<int>(threadIdx.x);
            scores[i] = -INFINITY;
            if (u >= here) continue;
            float score = 0;
            for (int64_t d = 0; d < D; ++d) score += load(query + d) * load(own_keys + d * T + first + u);
            scores[i] = score * factor;
            // A NaN is no maximum, but shows in the sum of the weights.
            tile_largest = scores[i] > tile_largest ? scores[i] : tile_largest;
        }
        const float before = largest;
        tile_largest =
            over_block(warp_max(tile_largest), scratch, [](float a, float b) { return b > a ? b : a; });
        largest = tile_largest > largest ? tile_largest : largest;
        float sum = 0;
        CU_UNROLL
        for (int i = 0; i < tile / threads; ++i) {
            const int u = i * threads + static_cast<int>(threadIdx.x);
            const float weight = u < here ? expf(scores[i] - largest) : 0.0f;
            store_shared(weights + u, weight);
            sum += weight;
        }
        const float rescale = first > 0 ? expf(before - largest) : 0.0f;
        // Its barriers are also those between the weights' writers and readers.
        denominator = denominator * rescale +
                      over_block(warp_sum(sum), scratch, [](float a, float b) { return a + b; });
        CU_UNROLL
        for (int i = 0; i < lane_numbers; ++i) {
            const int d = i * 32 + lane_index();
            sums[i] *= rescale;
            if (d >= width) continue;
            for (int u = warp_index(); u < here; u += warps)
                sums[i] += load_shared(weights + u) * load(own_values + (first + u) * D + d);
        }
        block_sync();
    }
    CU_UNROLL
    for (int i = 0; i < lane_numbers; ++i)
        store_shared(parts + warp_index() * slice + i * 32 + lane_index(), sums[i]);
    block_sync();
    const int d = static_cast<int>(threadIdx.x);
    if (d >= width) return;
    float total = load_shared(parts + d);
    CU_UNROLL
    for (int warp = 1; warp < warps; ++warp) total += load_shared(parts + warp * slice + d);
    store(y + (m * sizes.heads + h) * D + int64_t{blockIdx.z} * slice + d, total / denominator);
}

static_assert(slice == threads, "a thread has one number of the slice at the end");

}  // namespace

void cached_attention_forward(Device& device, const CachedAttentionForward& a) {
    const AttentionShape& shape = a.shape;
    const Sizes sizes{shape.heads, shape.kv_heads, shape.head_dim, a.values.shape[1], a.position};
    const auto rows = static_cast<unsigned>(shape.sequence);
    float *keys = a.keys.as<float>(), *values = a.values.as<float>();
    CU_LAUNCH(append, dim3(blocks_for(shape.kv_heads * shape.head_dim, threads), rows), threads, 0,
              device.stream(), keys, values, a.qkv.as<float>(), sizes);
    const dim3 blocks(static_cast<unsigned>(shape.heads), rows, blocks_for(shape.head_dim, slice));
    CU_LAUNCH(attend, blocks, threads, 0, device.stream(), a.y.as<float>(), keys, values, a.qkv.as<float>(),
              1.0f / std::sqrt(static_cast<float>(shape.head_dim)), sizes);
}

}  // namespace train_qat::CU_BACKEND
