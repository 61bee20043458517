// Causal attention with grouped heads, forward (FlashAttention-2, arXiv 2307.08691), on tensor cores.
//
// A block takes a tile of queries of one head and goes over the tiles of its keys and values up to the
// diagonal. With c = log2(e) / sqrt(D) it keeps for each query a reference value m, the sum l of the weights
// 2^(c q·k - m) and the sum o of the values that they weigh:
//     s  = c q kᵀ
//     m' = m, or rowmax(s) where that is much larger
//     p  = 2^(s - m')
//     l  = l 2^(m - m') + rowsum p
//     o  = o 2^(m - m') + p v
// and in the end y = o / l and log_sum_exp = m ln 2 + ln l. m need not be the maximum: any m gives the same
// y, and while no weight passes 2^8, l and o are far from overflow and most tiles can leave them as they are.
// Each row decides for itself, so that its bits do not depend on later rows.
//
// A warp has 32 queries: what it reads of keys and values from shared memory is used twice, without which
// shared memory would be the limit. Keys and values are copied one tile ahead of the computation.
//
// Floor: 4 B H (T²/2) D FLOP on tensor cores: two products of T x T x D, of which the lower triangle. Warps
// leave out tiles of keys that lie behind all their queries: only the upper halves of diagonal tiles come on
// top.
#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/attention_heads.cuh"
#include "kernels/cuda/attention/attention_tiles.cuh"

namespace train_qat::CU_BACKEND {

namespace {

using namespace attention;

template <int D>
struct ForwardTiles {
    static constexpr int rows = 32;  // queries of a warp
    static constexpr int warps = 4, threads = 32 * warps, queries = rows * warps;
    static constexpr int keys = D <= 64 ? 64 : 32;  // of a tile; more would not leave enough registers
    static constexpr bool queries_in_registers = D <= 64;
    static constexpr int blocks = D <= 32 ? 3 : 2;  // on a multiprocessor
    static constexpr int stage = 2 * keys * D;      // elements of a tile of keys and one of values
    static constexpr int shared_bytes = (queries * D + 2 * stage) * 2;
};

// A lane's rows: 16i + g (half 0) and 16i + g + 8 (half 1).
template <int M>
struct SoftmaxState {
    float maximum[M / 16][2];  // m
    float sum[M / 16][2];      // l, this lane's part
};

// Weights may become as large as 2^headroom before the reference value follows.
constexpr float headroom = 8.0f;

// Moves the reference values where `scores` ask for it.
template <int D, int M, int N>
CU_DEVICE void raise_maximum(SoftmaxState<M>& state, float (&out)[M / 16][D / 8][4],
                             const float (&scores)[M / 16][N / 8][4], float scale) {
    float factor[M / 16][2];
    bool any = false;
    for_rows<M>([&](int i, int half) {
        float largest = scores[i][0][2 * half];
        CU_UNROLL
        for (int j = 0; j < N / 8; ++j)
            largest = fmaxf(largest, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
        largest = row_max(largest) * scale;
        float& maximum = state.maximum[i][half];
        const bool raise = largest > maximum + headroom;
        factor[i][half] = raise ? fast_exp2(maximum - largest) : 1.0f;
        maximum = raise ? largest : maximum;
        any = any || raise;
    });
    if (ballot(any) == 0) return;
    for_rows<M>([&](int i, int half) { state.sum[i][half] *= factor[i][half]; });
    for_elements<M, D>([&](int i, int j, int e) { out[i][j][e] *= factor[i][e / 2]; });
}

// scores become weights.
template <int M, int N>
CU_DEVICE void make_weights(SoftmaxState<M>& state, float (&scores)[M / 16][N / 8][4], float scale) {
    for_elements<M, N>([&](int i, int j, int e) {
        scores[i][j][e] = fast_exp2(scores[i][j][e] * scale - state.maximum[i][e / 2]);
        state.sum[i][e / 2] += scores[i][j][e];
    });
}

// Divides o by l and writes y and log_sum_exp. log_sum_exp: of this head.
template <int D, int M>
CU_DEVICE void finish_rows(const HeadRows<bfloat16>& y, float* log_sum_exp, int first, bfloat16* tile,
                           int tile_row, const float (&out)[M / 16][D / 8][4], const SoftmaxState<M>& state) {
    float inverse[M / 16][2];
    for_rows<M>([&](int i, int half) {
        const float sum = row_sum(state.sum[i][half]);
        inverse[i][half] = 1.0f / sum;
        const int query = first + row_of(i, half);
        if (lane_index() % 4 == 0 && query < y.count)
            store(log_sum_exp + query, state.maximum[i][half] * static_cast<float>(ln_2) + logf(sum));
    });
    store_rows<D, M>(y, first, tile, tile_row, out, [&](int i, int half) { return inverse[i][half]; });
}

template <int D>
__global__ void __launch_bounds__(ForwardTiles<D>::threads, ForwardTiles<D>::blocks)
    forward_tiles(bfloat16* y, float* log_sum_exp, const bfloat16* qkv, AttentionSizes s) {
    using Tiles = ForwardTiles<D>;
    constexpr int M = Tiles::rows, N = Tiles::keys;
    CU_DYN_SHARED(bfloat16, query_tile);                       // (queries, D)
    bfloat16* const stages = query_tile + Tiles::queries * D;  // 2 x (keys, D) and (keys, D)

    const int tiles = (s.sequence + Tiles::queries - 1) / Tiles::queries;
    const BlockOfHead block(s.heads, tiles, true);
    const int first_query = block.tile * Tiles::queries;
    const int last_key = std::min(first_query + Tiles::queries, s.sequence) - 1;
    const int kv_head = block.head / s.group;
    const auto start_copy = [&](int first_key) {
        bfloat16* stage = stages + first_key / N % 2 * Tiles::stage;
        if (first_key <= last_key) {
            copy_tile<D, N, Tiles::threads>(stage, key_rows(qkv, block.batch, kv_head, s), first_key);
            copy_tile<D, N, Tiles::threads>(stage + N * D, value_rows(qkv, block.batch, kv_head, s),
                                            first_key);
        }
        cp_async_commit();
    };
    copy_tile<D, Tiles::queries, Tiles::threads>(query_tile, query_rows(qkv, block.batch, block.head, s),
                                                 first_query);
    start_copy(0);

    const int warp_row = warp_index() * M, first_row = first_query + warp_row;
    uint32_t q[D / 16][M / 16][4];
    if constexpr (Tiles::queries_in_registers) {
        cp_async_wait<0>();
        block_sync();
        load_left_rows<D, M>(q, query_tile, warp_row);
    }
    float out[M / 16][D / 8][4];
    clear<M, D>(out);
    SoftmaxState<M> state;
    for_rows<M>([&](int i, int half) {
        state.maximum[i][half] = -1e38f;  // finite: -infinity minus itself is not a number
        state.sum[i][half] = 0.0f;
    });
    for (int first_key = 0; first_key <= last_key; first_key += N) {
        cp_async_wait<0>();
        block_sync();  // this tile has arrived, and nobody needs the one before it
        start_copy(first_key + N);
        if (first_key >= first_row + M || first_row >= s.sequence) continue;
        const bfloat16* stage = stages + first_key / N % 2 * Tiles::stage;
        float weights[M / 16][N / 8][4];
        if constexpr (Tiles::queries_in_registers)
            multiply_transposed<D, M, N>(weights, q, stage, 0);
        else
            multiply_transposed<D, M, N>(weights, query_tile, warp_row, stage, 0);
        const int keys_ahead = first_key - first_row;
        if (keys_ahead + N > 1) hide_later_keys<false, M, N>(weights, keys_ahead);
        raise_maximum<D, M, N>(state, out, weights, s.binary_root);
        make_weights<M, N>(state, weights, s.binary_root);
        add_product<D, M, N>(out, weights, stage + N * D, 0);
    }
    finish_rows<D, M>(output_rows(y, block.batch, block.head, s),
                      log_sum_exp + start_of_head(block.batch, block.head, s), first_row, query_tile,
                      warp_row, out, state);
}

template <int D>
void launch_forward(CuStream stream, bfloat16* y, float* log_sum_exp, const bfloat16* qkv,
                    const AttentionShape& shape) {
    using Tiles = ForwardTiles<D>;
    const unsigned tiles = blocks_for(shape.sequence, Tiles::queries);
    const auto heads = static_cast<unsigned>(shape.batch * shape.heads);
    CU_LAUNCH((forward_tiles<D>), tiles * heads, Tiles::threads, Tiles::shared_bytes, stream, y, log_sum_exp,
              qkv, AttentionSizes(shape));
}

}  // namespace

void attention_forward(Device& device, const AttentionForward& a) {
    if (device.options().attention == AttentionKernels::hopper) return hopper_attention_forward(device, a);
    if (tensor_cores_apply(a.qkv.dtype, a.shape, a.qkv.data, a.y.data)) {
        with_head_dim(TensorCoreHeadDims(), a.shape.head_dim, [&]<int D>() {
            launch_forward<D>(device.stream(), a.y.as<bfloat16>(), a.log_sum_exp.as<float>(),
                              a.qkv.as<bfloat16>(), a.shape);
        });
        return;
    }
    with_compute_type(a.name, a.qkv.dtype, [&]<typename T>() {
        forward_any(device.stream(), a.y.as<T>(), a.log_sum_exp.as<float>(), a.qkv.as<T>(), a.shape);
    });
}

}  // namespace train_qat::CU_BACKEND
