// Causal attention with grouped heads, backward, on tensor cores. Two kernels, each of which owns what it
// writes, so that nothing is added up by atomics and results have the same bits every time:
//
//   * query_gradient: a tile of queries, over the key tiles up to the diagonal, twice.
//         p = e^(q kᵀ / sqrt(D) - log_sum_exp)
//         dp = dy vᵀ
//         first pass:    delta += rowsum(p ∘ dp)
//         second pass:   ds = p ∘ (dp - delta)
//                        dq += ds k / sqrt(D)
//   * key_value_gradient: a tile of keys, over the group's query heads and their tiles from the diagonal on, all
//     transposed, so that pᵀ and dsᵀ come out of their products as left operands of the next.
//         pᵀ = e^(k qᵀ / sqrt(D) - log_sum_exp)
//         dv += pᵀ dy
//         dsᵀ = pᵀ ∘ (v dyᵀ - delta)
//         dk += dsᵀ q / sqrt(D)
//
// delta also equals rowsum(dy ∘ y), which saves the first pass. But y is rounded to bfloat16, and where
// attention is nearly even, as in a fresh model, dp - delta is smaller than that rounding: queries and keys
// would learn from noise. p and ds are rounded to bfloat16 as operands only.
//
// Floor: 18 B H (T²/2) D FLOP on tensor cores, nine products of T x T x D of which the lower triangle, 9/2 of
// the forward pass's: q kᵀ and dy vᵀ three times, because only a tile of T x T weights exists at a time, and
// the three gradients. Two of the nine are the price of the exact delta, two that of writing without atomics.
#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/attention_heads.cuh"
#include "kernels/cuda/attention/attention_tiles.cuh"

namespace train_qat::CU_BACKEND {

namespace {

using namespace attention;

constexpr int block_rows = 128;

// A warp has as many rows as leave enough registers for the D columns of their gradients.
template <int D>
struct BackwardTiles {
    static constexpr int rows = D <= 64 ? 32 : 16;  // of a warp
    static constexpr int warps = block_rows / rows, threads = 32 * warps;
};

// What key_value_gradient wants to know of the queries, ready for cp.async: for each 32 queries of a head
// their log_sum_exp in units of log 2, then their delta. Heads are padded to whole tiles with queries whose
// log_sum_exp is infinity, which makes all their weights zero.
constexpr int statistics_queries = 32;

TRAIN_QAT_HOST_DEVICE inline int64_t statistics_of_head(int64_t sequence) {
    return (sequence + block_rows - 1) / block_rows * block_rows * 2;
}

// Those of the 32 queries that hold this one.
template <typename T>
CU_DEVICE T* query_statistics(T* statistics, int batch, int head, int query, const AttentionSizes& s) {
    return statistics + (int64_t{batch} * s.heads + head) * statistics_of_head(s.sequence) +
           query / statistics_queries * (2 * statistics_queries);
}

// ---- dq and delta

template <int D>
struct QueryGradientTiles : BackwardTiles<D> {
    static constexpr int blocks = D <= 32 ? 3 : D <= 64 ? 2 : 1;  // on a multiprocessor
    static constexpr int keys = 64;                               // of a tile
    static constexpr int strip = D <= 64 ? 16 : 32;               // keys whose weights exist at a time
    static constexpr int stage = 2 * keys * D;  // elements of a tile of keys and one of values
    static constexpr int shared_bytes = 2 * stage * 2;
    static_assert(stage == block_rows * D);  // they also hold the block's q and dy, and in the end dq
};

// The warp's rows of q and dy into registers, through shared memory that is free again afterwards.
template <int D>
CU_DEVICE void load_query_side(uint32_t (&q)[D / 16][BackwardTiles<D>::rows / 16][4],
                               uint32_t (&dout)[D / 16][BackwardTiles<D>::rows / 16][4], bfloat16* shared,
                               const HeadRows<const bfloat16>& queries, const HeadRows<const bfloat16>& douts,
                               int first_query) {
    using Tiles = BackwardTiles<D>;
    bfloat16* const dout_tile = shared + block_rows * D;
    copy_tile<D, block_rows, Tiles::threads>(shared, queries, first_query);
    copy_tile<D, block_rows, Tiles::threads>(dout_tile, douts, first_query);
    cp_async_commit();
    cp_async_wait<0>();
    block_sync();
    load_left_rows<D, Tiles::rows>(q, shared, warp_index() * Tiles::rows);
    load_left_rows<D, Tiles::rows>(dout, dout_tile, warp_index() * Tiles::rows);
    block_sync();
}

template <int D>
__global__ void __launch_bounds__(BackwardTiles<D>::threads, QueryGradientTiles<D>::blocks)
    query_gradient(bfloat16* dqkv, float* statistics, const bfloat16* dy, const bfloat16* qkv,
                   const float* log_sum_exp, AttentionSizes s) {
    using Tiles = QueryGradientTiles<D>;
    constexpr int M = Tiles::rows, N = Tiles::strip, threads = Tiles::threads;
    CU_DYN_SHARED(bfloat16, shared);  // 2 x (keys, D) and (keys, D)
    const BlockOfHead block(s.heads, (s.sequence + block_rows - 1) / block_rows, true);
    const int first_query = block.tile * block_rows;
    const int warp_row = warp_index() * M, first_row = first_query + warp_row;
    uint32_t q[D / 16][M / 16][4], dout[D / 16][M / 16][4];
    load_query_side<D>(q, dout, shared, query_rows(qkv, block.batch, block.head, s),
                       output_rows(dy, block.batch, block.head, s), first_query);

    const HeadRows<const bfloat16> keys = key_rows(qkv, block.batch, block.head / s.group, s);
    const HeadRows<const bfloat16> values = value_rows(qkv, block.batch, block.head / s.group, s);
    const int last_key = std::min(first_query + block_rows, s.sequence) - 1;
    const auto start_copy = [&](int stage, int first_key) {
        bfloat16* key_tile = shared + stage * Tiles::stage;
        copy_tile<D, Tiles::keys, threads>(key_tile, keys, first_key);
        copy_tile<D, Tiles::keys, threads>(key_tile + Tiles::keys * D, values, first_key);
        cp_async_commit();
    };
    start_copy(0, 0);

    const float* head_log_sum_exp = log_sum_exp + start_of_head(block.batch, block.head, s);
    float dq[M / 16][D / 8][4], shift[M / 16][2], delta[M / 16][2];
    clear<M, D>(dq);
    for_rows<M>([&](int i, int half) {
        const int query = first_row + row_of(i, half);
        shift[i][half] =
            query < s.sequence ? load(head_log_sum_exp + query) * static_cast<float>(log2_e) : INFINITY;
        delta[i][half] = 0.0f;
    });
    for (int first_key = 0, pass = 0, stage = 0; pass < 2; stage ^= 1) {
        cp_async_wait<0>();
        block_sync();  // this tile has arrived, and nobody needs the one before it
        const bool last = first_key + Tiles::keys > last_key;
        if (!last || pass == 0) start_copy(stage ^ 1, last ? 0 : first_key + Tiles::keys);
        const bfloat16* key_tile = shared + stage * Tiles::stage;
        for (int row = 0; row < Tiles::keys; row += N) {
            const int keys_ahead = first_key + row - first_row;
            if (keys_ahead >= M || first_row >= s.sequence) break;
            float weights[M / 16][N / 8][4], dweights[M / 16][N / 8][4];
            multiply_transposed<D, M, N>(weights, q, key_tile, row);
            multiply_transposed<D, M, N>(dweights, dout, key_tile + Tiles::keys * D, row);
            if (keys_ahead + N > 1) hide_later_keys<false, M, N>(weights, keys_ahead);
            for_elements<M, N>([&](int i, int j, int e) {
                weights[i][j][e] = fast_exp2(weights[i][j][e] * s.binary_root - shift[i][e / 2]);
            });
            if (pass == 0) {
                for_elements<M, N>(
                    [&](int i, int j, int e) { delta[i][e / 2] += weights[i][j][e] * dweights[i][j][e]; });
            } else {
                for_elements<M, N>([&](int i, int j, int e) {
                    dweights[i][j][e] = weights[i][j][e] * (dweights[i][j][e] - delta[i][e / 2]);
                });
                add_product<D, M, N>(dq, dweights, key_tile, row);
            }
        }
        if (last && pass == 0)
            for_rows<M>([&](int i, int half) { delta[i][half] = row_sum(delta[i][half]); });
        first_key = last ? 0 : first_key + Tiles::keys;
        pass += last;
    }

    float* const numbers =
        query_statistics(statistics, block.batch, block.head, first_row, s) + first_row % statistics_queries;
    for_rows<M>([&](int i, int half) {
        if (lane_index() % 4 != 0) return;
        store(numbers + row_of(i, half), shift[i][half]);
        store(numbers + statistics_queries + row_of(i, half), delta[i][half]);
    });
    // Through the first stage: the last tiles, which others may still need, lie in the second.
    store_rows<D, M>(query_rows(dqkv, block.batch, block.head, s), first_row, shared, warp_row, dq,
                     [&](int, int) { return s.inverse_root; });
}

// ---- dk and dv

template <int D>
struct KeyValueGradientTiles : BackwardTiles<D> {
    static constexpr int blocks = D <= 16 ? 3 : D <= 64 ? 2 : 1;  // on a multiprocessor
    static constexpr int queries = statistics_queries;            // of a tile
    static constexpr int stage = 2 * queries * D;  // elements of a tile of queries and one of dy
    static constexpr int shared_bytes =
        (2 * block_rows * D + 2 * stage) * 2 + 2 * 2 * queries * static_cast<int>(sizeof(float));
};

// The columns' numbers: shift[j] and delta[j] belong to columns column_of(j, 0) and column_of(j, 1).
template <int N>
CU_DEVICE void load_columns(Vector<float, 2> (&numbers)[N / 8], const float* shared) {
    CU_UNROLL
    for (int j = 0; j < N / 8; ++j) numbers[j] = load_shared_vector<2>(shared + column_of(j, 0));
}

template <int D>
__global__ void __launch_bounds__(BackwardTiles<D>::threads, KeyValueGradientTiles<D>::blocks)
    key_value_gradient(bfloat16* dqkv, const bfloat16* dy, const bfloat16* qkv, const float* statistics,
                       AttentionSizes s) {
    using Tiles = KeyValueGradientTiles<D>;
    constexpr int M = Tiles::rows, N = Tiles::queries, threads = Tiles::threads;
    CU_DYN_SHARED(bfloat16, key_tile);                       // (block_rows, D)
    bfloat16* const value_tile = key_tile + block_rows * D;  // (block_rows, D)
    bfloat16* const stages = value_tile + block_rows * D;    // 2 x (queries, D) and (queries, D)
    float* const numbers =
        reinterpret_cast<float*>(stages + 2 * Tiles::stage);  // 2 x (queries) and (queries)

    const BlockOfHead block(s.kv_heads, (s.sequence + block_rows - 1) / block_rows, false);
    const int first_key = block.tile * block_rows;
    const int warp_row = warp_index() * M, first_row = first_key + warp_row;
    const int last_head = (block.head + 1) * s.group - 1;
    const auto start_copy = [&](int stage, int head, int first_query) {
        bfloat16* query_tile = stages + stage * Tiles::stage;
        copy_tile<D, N, threads>(query_tile, query_rows(qkv, block.batch, head, s), first_query);
        copy_tile<D, N, threads>(query_tile + N * D, output_rows(dy, block.batch, head, s), first_query);
        if (threadIdx.x < N / 2) {  // 2N numbers, four to a copy
            const int number = 4 * static_cast<int>(threadIdx.x);
            cp_async_16(numbers + stage * 2 * N + number,
                        query_statistics(statistics, block.batch, head, first_query, s) + number);
        }
        cp_async_commit();
    };
    int head = block.head * s.group, first_query = first_key, stage = 0;
    copy_tile<D, block_rows, threads>(key_tile, key_rows(qkv, block.batch, block.head, s), first_key);
    copy_tile<D, block_rows, threads>(value_tile, value_rows(qkv, block.batch, block.head, s), first_key);
    start_copy(stage, head, first_query);

    float dk[M / 16][D / 8][4], dv[M / 16][D / 8][4];
    clear<M, D>(dk);
    clear<M, D>(dv);
    for (bool more = true; more; stage ^= 1) {
        cp_async_wait<0>();
        block_sync();  // this tile has arrived, and nobody needs the one before it
        const int queries_ahead = first_query - first_row;
        first_query += N;
        if (first_query >= s.sequence) {
            first_query = first_key;
            ++head;
        }
        more = head <= last_head;
        if (more) start_copy(stage ^ 1, head, first_query);
        if (first_row < s.sequence && queries_ahead + N > 0) {
            const bfloat16* query_tile = stages + stage * Tiles::stage;
            const bfloat16* dout_tile = query_tile + N * D;
            const float* of_queries = numbers + stage * 2 * N;
            float weights[M / 16][N / 8][4];
            multiply_transposed<D, M, N>(weights, key_tile, warp_row, query_tile, 0);
            if (queries_ahead < M - 1) hide_later_keys<true, M, N>(weights, queries_ahead);
            Vector<float, 2> shift[N / 8], delta[N / 8];
            load_columns<N>(shift, of_queries);
            for_elements<M, N>([&](int i, int j, int e) {
                weights[i][j][e] = fast_exp2(weights[i][j][e] * s.binary_root - shift[j][e % 2]);
            });
            add_product<D, M, N>(dv, weights, dout_tile, 0);
            float dweights[M / 16][N / 8][4];
            multiply_transposed<D, M, N>(dweights, value_tile, warp_row, dout_tile, 0);
            load_columns<N>(delta, of_queries + N);
            for_elements<M, N>([&](int i, int j, int e) {
                dweights[i][j][e] = weights[i][j][e] * (dweights[i][j][e] - delta[j][e % 2]);
            });
            add_product<D, M, N>(dk, dweights, query_tile, 0);
        }
    }

    store_rows<D, M>(value_rows(dqkv, block.batch, block.head, s), first_row, value_tile, warp_row, dv,
                     [](int, int) { return 1.0f; });
    store_rows<D, M>(key_rows(dqkv, block.batch, block.head, s), first_row, key_tile, warp_row, dk,
                     [&](int, int) { return s.inverse_root; });
}

// ---- launchers

template <int D>
void launch_backward(CuStream stream, bfloat16* dqkv, const bfloat16* dy, const bfloat16* qkv,
                     const float* log_sum_exp, const AttentionShape& shape, float* statistics) {
    using Tiles = BackwardTiles<D>;
    const unsigned tiles = blocks_for(shape.sequence, block_rows);
    const auto heads = static_cast<unsigned>(shape.batch * shape.heads);
    const auto kv_heads = static_cast<unsigned>(shape.batch * shape.kv_heads);
    CU_LAUNCH((query_gradient<D>), tiles * heads, Tiles::threads, QueryGradientTiles<D>::shared_bytes, stream,
              dqkv, statistics, dy, qkv, log_sum_exp, AttentionSizes(shape));
    CU_LAUNCH((key_value_gradient<D>), tiles * kv_heads, Tiles::threads,
              KeyValueGradientTiles<D>::shared_bytes, stream, dqkv, dy, qkv, statistics,
              AttentionSizes(shape));
}

}  // namespace

bool wants_attention_remainder(const Device& device) {
    return device.options().attention == AttentionKernels::hopper;
}

// The queries' statistics, or delta (B, H, T) alone.
int64_t attention_backward_workspace(const Device& device, const AttentionShape& shape) {
    if (wants_attention_remainder(device)) return hopper_attention_backward_workspace(device, shape);
    return shape.batch * shape.heads * statistics_of_head(shape.sequence) *
           static_cast<int64_t>(sizeof(float));
}

void attention_backward(Device& device, const AttentionBackward& a) {
    if (wants_attention_remainder(device)) return hopper_attention_backward(device, a);
    float* statistics = static_cast<float*>(a.workspace);
    if (tensor_cores_apply(a.qkv.dtype, a.shape, a.qkv.data, a.dqkv.data, a.dy.data, a.workspace)) {
        with_head_dim(TensorCoreHeadDims(), a.shape.head_dim, [&]<int D>() {
            launch_backward<D>(device.stream(), a.dqkv.as<bfloat16>(), a.dy.as<bfloat16>(),
                               a.qkv.as<bfloat16>(), a.log_sum_exp.as<float>(), a.shape, statistics);
        });
        return;
    }
    with_compute_type(a.name, a.qkv.dtype, [&]<typename T>() {
        backward_any(device.stream(), a.dqkv.as<T>(), a.dy.as<T>(), a.qkv.as<T>(), a.log_sum_exp.as<float>(),
                     a.shape, statistics);
    });
}

}  // namespace train_qat::CU_BACKEND
