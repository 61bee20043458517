// Attention of few new positions to all before them, whose keys and values are cached. Scores are made for neighbouring
// positions side by side, which is why keys are cached transposed; a head's work is one thread's.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/platform/worker_pool.h"
#include "kernels/cpu/tile.h"

#include <cmath>
#include <limits>

namespace train_qat {

namespace {

// Multiplications that are worth another thread.
constexpr int64_t products_per_block = 65536;

// Columns of cached rows, both of which one head of queries reads.
struct Cache {
    float* keys;    // (D, T)
    float* values;  // (T, D)
    int64_t capacity, head_dim;
};

Cache cache_of(const CachedAttentionForward& args, int64_t kv_head) {
    const int64_t capacity = args.values.shape[1], D = args.shape.head_dim, offset = kv_head * capacity * D;
    return {args.keys.as<float>() + offset, args.values.as<float>() + offset, capacity, D};
}

void append(const CachedAttentionForward& args, int64_t kv_head) {
    const AttentionShape& shape = args.shape;
    const Cache cache = cache_of(args, kv_head);
    for (int64_t i = 0; i < shape.sequence; ++i) {
        const float* const key =
            args.qkv.as<float>() + i * shape.qkv_columns() + (shape.heads + kv_head) * shape.head_dim;
        const float* const value = key + shape.kv_heads * shape.head_dim;
        const int64_t position = args.position + i;
        for (int64_t d = 0; d < shape.head_dim; ++d) {
            cache.keys[d * cache.capacity + position] = key[d];
            cache.values[position * cache.head_dim + d] = value[d];
        }
    }
}

// scores[u] = factor * q·k[u] for u < count
void make_scores(const Cache& cache, const float* __restrict query, float factor, int64_t count,
                 float* __restrict scores) {
    constexpr int64_t chains = 4, width = chains * vector_lanes;
    int64_t u = 0;
    for (; u + width <= count; u += width) {
        FloatVector sums[chains] = {};
        for (int64_t d = 0; d < cache.head_dim; ++d)
            for (int64_t i = 0; i < chains; ++i)
                sums[i] += query[d] * load_vector(cache.keys + d * cache.capacity + u + i * vector_lanes);
        for (int64_t i = 0; i < chains; ++i) {
            const FloatVector scaled = sums[i] * factor;
            std::memcpy(scores + u + i * vector_lanes, &scaled, sizeof scaled);
        }
    }
    if (u == count) return;
    for (int64_t rest = u; rest < count; ++rest) scores[rest] = 0;
    for (int64_t d = 0; d < cache.head_dim; ++d) {
        const float* __restrict keys = cache.keys + d * cache.capacity;
        for (int64_t rest = u; rest < count; ++rest) scores[rest] += query[d] * keys[rest];
    }
    for (int64_t rest = u; rest < count; ++rest) scores[rest] *= factor;
}

// In place; the sum of the weights, which are not yet divided by it.
float make_weights(float* __restrict scores, int64_t count) {
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t u = 0; u < count; ++u) largest = scores[u] > largest ? scores[u] : largest;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t u = 0; u < count; ++u) {
        scores[u] = exponential(scores[u] - largest);
        sum += scores[u];
    }
    return sum;
}

// y = factor * sum over u of weights[u] v[u]
void mix_values(const Cache& cache, const float* weights, float factor, int64_t count, float* __restrict y) {
    constexpr int64_t chains = 4, width = chains * vector_lanes;
    int64_t d = 0;
    for (; d + width <= cache.head_dim; d += width) {
        FloatVector sums[chains] = {};
        for (int64_t u = 0; u < count; ++u)
            for (int64_t i = 0; i < chains; ++i)
                sums[i] += weights[u] * load_vector(cache.values + u * cache.head_dim + d + i * vector_lanes);
        for (int64_t i = 0; i < chains; ++i) {
            const FloatVector mixed = sums[i] * factor;
            std::memcpy(y + d + i * vector_lanes, &mixed, sizeof mixed);
        }
    }
    for (; d + vector_lanes <= cache.head_dim; d += vector_lanes) {
        FloatVector sums[chains] = {};
        int64_t u = 0;
        for (; u + chains <= count; u += chains)
            for (int64_t i = 0; i < chains; ++i)
                sums[i] += weights[u + i] * load_vector(cache.values + (u + i) * cache.head_dim + d);
        for (; u < count; ++u) sums[0] += weights[u] * load_vector(cache.values + u * cache.head_dim + d);
        const FloatVector mixed = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * factor;
        std::memcpy(y + d, &mixed, sizeof mixed);
    }
    for (; d < cache.head_dim; ++d) {
        float sum = 0;
        for (int64_t u = 0; u < count; ++u) sum += weights[u] * cache.values[u * cache.head_dim + d];
        y[d] = sum * factor;
    }
}

}  // namespace

void CpuBackend::compute(const CachedAttentionForward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t D = shape.head_dim, M = shape.sequence, reach = args.position + M;
    const int64_t per_kv = shape.heads / shape.kv_heads;
    for (int64_t g = 0; g < shape.kv_heads; ++g) append(args, g);
    const float factor = 1.0f / std::sqrt(static_cast<float>(D));
    const int64_t heads_per_block = std::max<int64_t>(1, products_per_block / (2 * M * reach * D));
    float* const all_scores = thread_scratch(shape.heads * reach);
    const auto head = [&](int64_t h) {
        float* const scores = all_scores + h * reach;
        const Cache cache = cache_of(args, h / per_kv);
        for (int64_t i = 0; i < M; ++i) {
            const int64_t count = args.position + i + 1;
            const float* const query = args.qkv.as<float>() + i * shape.qkv_columns() + h * D;
            make_scores(cache, query, factor, count, scores);
            const float sum = make_weights(scores, count);
            mix_values(cache, scores, 1.0f / sum, count, args.y.as<float>() + (i * shape.heads + h) * D);
        }
    };
    workers().run((shape.heads + heads_per_block - 1) / heads_per_block, [&](int64_t block) {
        const int64_t last = std::min(shape.heads, (block + 1) * heads_per_block);
        for (int64_t h = block * heads_per_block; h < last; ++h) head(h);
    });
}

}  // namespace train_qat
