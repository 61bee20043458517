// Causal attention with grouped heads, forward and backward, for what the tensor-core kernels do not take:
// float32, head dimensions that they have no instances for, addresses that are no multiple of 16. All
// arithmetic is in float32; the formulas are those of kernels/cpu/attention, and delta is again
// rowsum(p ∘ dy vᵀ), summed before dq.
//
// A warp owns four rows of a head - queries, or keys for dk and dv - and goes over tiles of 32 rows of the
// other side, one for each lane. Two steps are enough for everything:
//     dot_products   lane l gets the products of the warp's rows with row l of the tile
//     add_product    the warp's rows += weights (4, 32) times the tile, lane l doing columns l, l + 32, ...
// The warp's rows and their sums lie in shared memory, transposed: (D, 4), one access for all four. Tiles
// come into shared memory 64 columns at a time, for all warps of the block, so that D is limited only by the
// rows.
//
// Floor: the products of attention_forward.cu and attention_backward.cu, outside the tensor cores. The four
// rows make four multiplications out of two reads of shared memory.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention/attention_heads.cuh"

namespace train_qat::CU_BACKEND::attention {

namespace {

constexpr int rows = 4;    // of a warp
constexpr int tile = 32;   // rows of the other side: one of each lane
constexpr int chunk = 64;  // columns of a tile in shared memory
constexpr int pitch = chunk + 1;
constexpr int most_warps = 8;

using RowVector = Vector<float, rows>;

// Shared memory of a block: the tile's chunk, then for each warp its weights (tile, rows) and `matrices`
// matrices (D, rows).
template <int matrices>
struct RowsMemory {
    float* chunk_of_tile;
    float* weights;
    float* matrix[matrices];
    int warps, first_row;  // first_row: of this warp within the block

    static int64_t bytes(int warps, int64_t head_dim) {
        return int64_t{4} * (tile * pitch + warps * (tile * rows + matrices * rows * head_dim));
    }
    CU_DEVICE RowsMemory(float* shared, int head_dim)
        : chunk_of_tile(shared), warps(static_cast<int>(blockDim.x) / 32), first_row(warp_index() * rows) {
        // Starts of 16 bytes: tile * pitch is a multiple of 4.
        weights = shared + tile * pitch + warp_index() * (tile * rows + matrices * rows * head_dim);
        for (int i = 0; i < matrices; ++i) matrix[i] = weights + tile * rows + i * rows * head_dim;
    }
};

// ---- the warp's own rows

template <typename T>
CU_DEVICE void load_rows(float* matrix, const HeadRows<const T>& source, int first, int head_dim) {
    for (int d = lane_index(); d < head_dim; d += 32) {
        RowVector values;
        CU_UNROLL
        for (int r = 0; r < rows; ++r)
            values[r] = first + r < source.count ? static_cast<float>(load(source.row(first + r) + d)) : 0.0f;
        store_shared_vector<rows>(matrix + d * rows, values);
    }
}
CU_DEVICE void clear_rows(float* matrix, int head_dim) {
    for (int d = lane_index(); d < head_dim; d += 32)
        store_shared_vector<rows>(matrix + d * rows, RowVector{});
}
// target = factor ∘ matrix
template <typename T>
CU_DEVICE void store_rows(const HeadRows<T>& target, int first, const float* matrix,
                          const float (&factor)[rows], int head_dim) {
    for (int d = lane_index(); d < head_dim; d += 32) {
        const RowVector values = load_shared_vector<rows>(matrix + d * rows);
        CU_UNROLL
        for (int r = 0; r < rows; ++r)
            if (first + r < target.count)
                store(target.row(first + r) + d, static_cast<T>(values[r] * factor[r]));
    }
}

// ---- the two steps, by all warps of the block together

// Calls function(column, columns) for each piece of the tile's rows `first` ..., as it lies in shared memory.
// Rows that do not exist are zero.
template <typename T, typename Function>
CU_DEVICE void for_chunks(float* chunk_of_tile, int warps, const HeadRows<const T>& source, int first,
                          int head_dim, Function&& function) {
    for (int column = 0; column < head_dim; column += chunk) {
        const int columns = head_dim - column < chunk ? head_dim - column : chunk;
        block_sync();  // the piece before is used up
        for (int row = warp_index(); row < tile; row += warps) {
            const bool exists = first + row < source.count;
            for (int c = lane_index(); c < columns; c += 32)
                store_shared(chunk_of_tile + row * pitch + c,
                             exists ? static_cast<float>(load(source.row(first + row) + column + c)) : 0.0f);
        }
        block_sync();
        function(column, columns);
    }
}

// Products of the warp's rows with the lane's row of the tile.
template <typename T, typename Memory>
CU_DEVICE RowVector dot_products(const Memory& memory, const float* matrix, const HeadRows<const T>& source,
                                 int first, int head_dim) {
    RowVector sum{};
    const float* row = memory.chunk_of_tile + lane_index() * pitch;
    for_chunks(memory.chunk_of_tile, memory.warps, source, first, head_dim, [&](int column, int columns) {
        for (int c = 0; c < columns; ++c) {
            const float other = load_shared(row + c);
            const RowVector own = load_shared_vector<rows>(matrix + (column + c) * rows);
            CU_UNROLL
            for (int r = 0; r < rows; ++r) sum[r] += own[r] * other;
        }
    });
    return sum;
}

// matrix = factor ∘ matrix + weights times the tile's rows, where lane l brings the weights of row l.
template <typename T, typename Memory>
CU_DEVICE void add_product(const Memory& memory, float* matrix, const RowVector& factor,
                           const RowVector& weights, const HeadRows<const T>& source, int first,
                           int head_dim) {
    store_shared_vector<rows>(memory.weights + lane_index() * rows, weights);
    for_chunks(memory.chunk_of_tile, memory.warps, source, first, head_dim, [&](int column, int columns) {
        for (int c = lane_index(); c < columns; c += 32) {
            float* place = matrix + (column + c) * rows;
            RowVector sum = load_shared_vector<rows>(place);
            CU_UNROLL
            for (int r = 0; r < rows; ++r) sum[r] *= factor[r];
            for (int u = 0; u < tile; ++u) {
                const RowVector weight = load_shared_vector<rows>(memory.weights + u * rows);
                const float other = load_shared(memory.chunk_of_tile + u * pitch + c);
                CU_UNROLL
                for (int r = 0; r < rows; ++r) sum[r] += weight[r] * other;
            }
            store_shared_vector<rows>(place, sum);
        }
    });
}

CU_DEVICE RowVector all_ones() {
    RowVector ones;
    CU_UNROLL
    for (int r = 0; r < rows; ++r) ones[r] = 1.0f;
    return ones;
}

// ---- kernels

template <typename T>
__global__ void __launch_bounds__(32 * most_warps, 2)
    forward_rows(T* y, float* log_sum_exp, const T* qkv, AttentionSizes s) {
    CU_DYN_SHARED(float, shared);
    const RowsMemory<2> memory(shared, s.head_dim);
    float* const query_matrix = memory.matrix[0];
    float* const out = memory.matrix[1];
    const int block_rows = memory.warps * rows, tiles = (s.sequence + block_rows - 1) / block_rows;
    const BlockOfHead block(s.heads, tiles, true);
    const int first_query = block.tile * block_rows, first_row = first_query + memory.first_row;
    const HeadRows<const T> keys = key_rows(qkv, block.batch, block.head / s.group, s);
    const HeadRows<const T> values = value_rows(qkv, block.batch, block.head / s.group, s);
    load_rows(query_matrix, query_rows(qkv, block.batch, block.head, s), first_row, s.head_dim);
    clear_rows(out, s.head_dim);

    // maximum: finite, because -infinity minus itself is not a number. sum: this lane's part.
    float maximum[rows], sum[rows];
    CU_UNROLL
    for (int r = 0; r < rows; ++r) {
        maximum[r] = -1e38f;
        sum[r] = 0.0f;
    }
    for (int first_key = 0; first_key < std::min(first_query + block_rows, s.sequence); first_key += tile) {
        RowVector weights = dot_products(memory, query_matrix, keys, first_key, s.head_dim);
        RowVector factor;
        CU_UNROLL
        for (int r = 0; r < rows; ++r) {
            const bool visible = first_key + lane_index() <= first_row + r;
            const float score = visible ? weights[r] * s.inverse_root : -INFINITY;
            const float largest = fmaxf(maximum[r], warp_max(score));
            factor[r] = expf(maximum[r] - largest);
            weights[r] = expf(score - largest);
            sum[r] = sum[r] * factor[r] + weights[r];
            maximum[r] = largest;
        }
        add_product(memory, out, factor, weights, values, first_key, s.head_dim);
    }

    float inverse[rows];
    CU_UNROLL
    for (int r = 0; r < rows; ++r) {
        const float total = warp_sum(sum[r]);
        inverse[r] = 1.0f / total;
        if (lane_index() == 0 && first_row + r < s.sequence)
            store(log_sum_exp + start_of_head(block.batch, block.head, s) + first_row + r,
                  maximum[r] + logf(total));
    }
    store_rows(output_rows(y, block.batch, block.head, s), first_row, out, inverse, s.head_dim);
}

template <typename T>
__global__ void __launch_bounds__(32 * most_warps, 2)
    query_gradient_rows(T* dqkv, float* delta_out, const T* dy, const T* qkv, const float* log_sum_exp,
                        AttentionSizes s) {
    CU_DYN_SHARED(float, shared);
    const RowsMemory<3> memory(shared, s.head_dim);
    float* const query_matrix = memory.matrix[0];
    float* const dout_matrix = memory.matrix[1];
    float* const dq = memory.matrix[2];
    const int block_rows = memory.warps * rows, tiles = (s.sequence + block_rows - 1) / block_rows;
    const BlockOfHead block(s.heads, tiles, true);
    const int first_query = block.tile * block_rows, first_row = first_query + memory.first_row;
    const int64_t start = start_of_head(block.batch, block.head, s);
    const HeadRows<const T> keys = key_rows(qkv, block.batch, block.head / s.group, s);
    const HeadRows<const T> values = value_rows(qkv, block.batch, block.head / s.group, s);
    load_rows(query_matrix, query_rows(qkv, block.batch, block.head, s), first_row, s.head_dim);
    load_rows(dout_matrix, output_rows(dy, block.batch, block.head, s), first_row, s.head_dim);
    clear_rows(dq, s.head_dim);

    float shift[rows], delta[rows];
    CU_UNROLL
    for (int r = 0; r < rows; ++r) {
        shift[r] = first_row + r < s.sequence ? load(log_sum_exp + start + first_row + r) : 0.0f;
        delta[r] = 0.0f;
    }
    for (int pass = 0; pass < 2; ++pass) {
        for (int first_key = 0; first_key < std::min(first_query + block_rows, s.sequence);
             first_key += tile) {
            const RowVector scores = dot_products(memory, query_matrix, keys, first_key, s.head_dim);
            const RowVector dweights = dot_products(memory, dout_matrix, values, first_key, s.head_dim);
            RowVector dscores;
            CU_UNROLL
            for (int r = 0; r < rows; ++r) {
                const bool visible = first_key + lane_index() <= first_row + r;
                const float weight = visible ? expf(scores[r] * s.inverse_root - shift[r]) : 0.0f;
                if (pass == 0) delta[r] += visible ? weight * dweights[r] : 0.0f;
                dscores[r] = visible ? weight * (dweights[r] - delta[r]) : 0.0f;
            }
            if (pass == 1) add_product(memory, dq, all_ones(), dscores, keys, first_key, s.head_dim);
        }
        if (pass == 1) break;
        CU_UNROLL
        for (int r = 0; r < rows; ++r) {
            delta[r] = warp_sum(delta[r]);
            if (lane_index() == 0 && first_row + r < s.sequence)
                store(delta_out + start + first_row + r, delta[r]);
        }
    }
    const float factor[rows] = {s.inverse_root, s.inverse_root, s.inverse_root, s.inverse_root};
    store_rows(query_rows(dqkv, block.batch, block.head, s), first_row, dq, factor, s.head_dim);
}

template <typename T>
__global__ void __launch_bounds__(32 * most_warps, 2)
    key_value_gradient_rows(T* dqkv, const T* dy, const T* qkv, const float* log_sum_exp, const float* delta,
                            AttentionSizes s) {
    CU_DYN_SHARED(float, shared);
    const RowsMemory<4> memory(shared, s.head_dim);
    float* const key_matrix = memory.matrix[0];
    float* const value_matrix = memory.matrix[1];
    float* const dk = memory.matrix[2];
    float* const dv = memory.matrix[3];
    const int block_rows = memory.warps * rows, tiles = (s.sequence + block_rows - 1) / block_rows;
    const BlockOfHead block(s.kv_heads, tiles, false);
    const int first_key = block.tile * block_rows, first_row = first_key + memory.first_row;
    load_rows(key_matrix, key_rows(qkv, block.batch, block.head, s), first_row, s.head_dim);
    load_rows(value_matrix, value_rows(qkv, block.batch, block.head, s), first_row, s.head_dim);
    clear_rows(dk, s.head_dim);
    clear_rows(dv, s.head_dim);

    for (int head = block.head * s.group; head < (block.head + 1) * s.group; ++head) {
        const HeadRows<const T> queries = query_rows(qkv, block.batch, head, s);
        const HeadRows<const T> douts = output_rows(dy, block.batch, head, s);
        const int64_t start = start_of_head(block.batch, head, s);
        for (int first_query = first_key / tile * tile; first_query < s.sequence; first_query += tile) {
            const int query = first_query + lane_index();
            const bool exists = query < s.sequence;
            const float shift = exists ? load(log_sum_exp + start + query) : 0.0f;
            const float mean = exists ? load(delta + start + query) : 0.0f;
            RowVector weights = dot_products(memory, key_matrix, queries, first_query, s.head_dim);
            CU_UNROLL
            for (int r = 0; r < rows; ++r) {
                const bool visible = exists && first_row + r <= query;
                weights[r] = visible ? expf(weights[r] * s.inverse_root - shift) : 0.0f;
            }
            add_product(memory, dv, all_ones(), weights, douts, first_query, s.head_dim);
            RowVector dscores = dot_products(memory, value_matrix, douts, first_query, s.head_dim);
            CU_UNROLL
            for (int r = 0; r < rows; ++r) {
                const bool visible = exists && first_row + r <= query;
                dscores[r] = visible ? weights[r] * (dscores[r] - mean) : 0.0f;
            }
            add_product(memory, dk, all_ones(), dscores, queries, first_query, s.head_dim);
        }
    }
    const float root[rows] = {s.inverse_root, s.inverse_root, s.inverse_root, s.inverse_root};
    const float one[rows] = {1.0f, 1.0f, 1.0f, 1.0f};
    store_rows(key_rows(dqkv, block.batch, block.head, s), first_row, dk, root, s.head_dim);
    store_rows(value_rows(dqkv, block.batch, block.head, s), first_row, dv, one, s.head_dim);
}

// ---- launchers

// As many warps as the shared memory of every device has room for. One warp with heads of more than 1,400
// numbers may be too much: then the launch says so.
template <int matrices>
struct RowsLaunch {
    unsigned blocks, threads, shared_bytes;
    RowsLaunch(const AttentionShape& shape, int64_t heads) {
        constexpr int64_t limit = 99 << 10;
        int warps = most_warps;
        while (warps > 1 && RowsMemory<matrices>::bytes(warps, shape.head_dim) > limit) --warps;
        blocks = blocks_for(shape.sequence, warps * rows) * static_cast<unsigned>(shape.batch * heads);
        threads = static_cast<unsigned>(32 * warps);
        shared_bytes = static_cast<unsigned>(RowsMemory<matrices>::bytes(warps, shape.head_dim));
    }
};

}  // namespace

template <typename T>
void forward_any(CuStream stream, T* y, float* log_sum_exp, const T* qkv, const AttentionShape& shape) {
    const RowsLaunch<2> launch(shape, shape.heads);
    CU_LAUNCH((forward_rows<T>), launch.blocks, launch.threads, launch.shared_bytes, stream, y, log_sum_exp,
              qkv, AttentionSizes(shape));
}

template <typename T>
void backward_any(CuStream stream, T* dqkv, const T* dy, const T* qkv, const float* log_sum_exp,
                  const AttentionShape& shape, float* delta) {
    const RowsLaunch<3> queries(shape, shape.heads);
    CU_LAUNCH((query_gradient_rows<T>), queries.blocks, queries.threads, queries.shared_bytes, stream, dqkv,
              delta, dy, qkv, log_sum_exp, AttentionSizes(shape));
    const RowsLaunch<4> keys(shape, shape.kv_heads);
    CU_LAUNCH((key_value_gradient_rows<T>), keys.blocks, keys.threads, keys.shared_bytes, stream, dqkv, dy,
              qkv, log_sum_exp, delta, AttentionSizes(shape));
}

template void forward_any(CuStream, float*, float*, const float*, const AttentionShape&);
template void forward_any(CuStream, bfloat16*, float*, const bfloat16*, const AttentionShape&);
template void backward_any(CuStream, float*, const float*, const float*, const float*, const AttentionShape&,
                           float*);
template void backward_any(CuStream, bfloat16*, const bfloat16*, const bfloat16*, const float*,
                           const AttentionShape&, float*);

}  // namespace train_qat::CU_BACKEND::attention
