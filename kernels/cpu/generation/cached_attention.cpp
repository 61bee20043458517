// Attention of few new positions to all before them, whose keys and values are cached. Scores are made for neighbouring
// positions side by side, which is why keys are cached transposed; a head's work is one thread's.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/platform/worker_pool.h"
#include "kernels/cpu/products/elements.h"
#include "kernels/cpu/row_vectors.h"

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

// scores[u .. u + chains * vector_lanes) = factor * q·k[u], of `chains` vectors of positions side by side
template <int64_t chains>
void make_score_vectors(const Cache& cache, const float* query, float factor, int64_t u, float* scores) {
    // Two sums for each vector hide the latency of an addition.
    FloatVector sums[2][chains] = {};
    const float* keys = cache.keys + u;
    int64_t d = 0;
    for (; d + 2 <= cache.head_dim; d += 2, keys += 2 * cache.capacity)
        for (int64_t i = 0; i < chains; ++i) {
            sums[0][i] += query[d] * load_vector(keys + i * vector_lanes);
            sums[1][i] += query[d + 1] * load_vector(keys + cache.capacity + i * vector_lanes);
        }
    for (int64_t i = 0; i < chains; ++i) {
        if (d < cache.head_dim) sums[0][i] += query[d] * load_vector(keys + i * vector_lanes);
        const FloatVector scaled = (sums[0][i] + sums[1][i]) * factor;
        std::memcpy(scores + u + i * vector_lanes, &scaled, sizeof scaled);
    }
}

// scores[u] = factor * q·k[u] for u < count, and some numbers behind. Whole vectors reach beyond the last position, as far
// as there is room in the cache: whatever stands there, nobody reads what becomes of it.
void make_scores(const Cache& cache, const float* query, float factor, int64_t count, float* scores) {
    constexpr int64_t chains = 4;
    int64_t u = 0;
    for (; u + chains * vector_lanes <= count; u += chains * vector_lanes)
        make_score_vectors<chains>(cache, query, factor, u, scores);
    for (; u < count && u + vector_lanes <= cache.capacity; u += vector_lanes)
        make_score_vectors<1>(cache, query, factor, u, scores);
    for (; u < count; ++u) {
        float sum = 0;
        for (int64_t d = 0; d < cache.head_dim; ++d) sum += query[d] * cache.keys[d * cache.capacity + u];
        scores[u] = sum * factor;
    }
}

// In place; the sum of the weights, which are not yet divided by it.
float make_weights(float* scores, int64_t count) {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    FloatVector largest = FloatVector{} + nothing, sum{};
    for_vectors(count,
                [&](int64_t u, auto at) { largest = larger_of(at.load(scores + u, nothing), largest); });
    largest = largest_of_lanes(largest);
    for_vectors(count, [&](int64_t u, auto at) {
        const FloatVector weights = exponential(at.load(scores + u, nothing) - largest);
        at.store(scores + u, weights);
        sum += weights;
    });
    return sum_of_lanes(sum)[0];
}

// y = factor * sum over u of weights[u] v[u]
void mix_values(const Cache& cache, const float* weights, float factor, int64_t count, float* __restrict y) {
    constexpr int64_t chains = 4, width = chains * vector_lanes;
    int64_t d = 0;
    for (; d + width <= cache.head_dim; d += width) {
        FloatVector sums[2][chains] = {};
        const float* values = cache.values + d;
        int64_t u = 0;
        for (; u + 2 <= count; u += 2, values += 2 * cache.head_dim)
            for (int64_t i = 0; i < chains; ++i) {
                sums[0][i] += weights[u] * load_vector(values + i * vector_lanes);
                sums[1][i] += weights[u + 1] * load_vector(values + cache.head_dim + i * vector_lanes);
            }
        for (int64_t i = 0; i < chains; ++i) {
            if (u < count) sums[0][i] += weights[u] * load_vector(values + i * vector_lanes);
            const FloatVector mixed = (sums[0][i] + sums[1][i]) * factor;
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
    const int64_t room = round_up(reach, vector_lanes);  // of the scores of a head
    float* const all_scores = thread_scratch(shape.heads * room);
    const auto head = [&](int64_t h) {
        float* const scores = all_scores + h * room;
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
