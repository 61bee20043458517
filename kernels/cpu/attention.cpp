// Causal attention with grouped key/value heads, tiled over queries and keys as in FlashAttention (arXiv
// 2205.14135): only one tile of the T x T weights exists at a time, and the backward pass computes it again
// from log_sum_exp.
//
// Forward, one query tile, over key tiles with running maximum m, denominator l and output o:
//     s = q kᵀ / sqrt(D);  m' = max(m, rowmax s);  p = e^(s - m');
//     l = l e^(m - m') + rowsum p;  o = o e^(m - m') + p v
// Backward:
//     p = e^(s - log_sum_exp);  delta = rowsum(p ∘ dy vᵀ);  dv += pᵀ dy;
//     ds = p ∘ (dy vᵀ - delta) / sqrt(D);  dq += ds k;  dk += dsᵀ q
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/tile.h"

namespace train_qat {

namespace {

constexpr int64_t tile = 64;  // queries and keys of a tile

// Sizes of one head, padded so that tiles have whole vectors.
struct HeadSizes {
    explicit HeadSizes(const AttentionShape& shape)
        : positions(shape.sequence),
          dim(shape.head_dim),
          padded_positions(round_up(shape.sequence, tile)),
          padded_dim(round_up(shape.head_dim, vector_lanes)),
          inverse_root(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {}
    int64_t positions, dim, padded_positions, padded_dim;
    float inverse_root;
};

// Of a tile on the diagonal half is masked. Its products run over strips of 16 queries, each only as far as
// the mask reaches; other tiles are one strip.
constexpr int64_t strip = 16;

// Calls function(first, count, visible keys) for strips of queries.
template <typename Function>
void for_query_strips(bool diagonal, int64_t queries, int64_t keys, Function&& function) {
    const int64_t step = diagonal ? strip : queries;
    for (int64_t first = 0; first < queries; first += step) {
        const int64_t count = std::min(step, queries - first);
        function(first, count, diagonal ? std::min(keys, first + count) : keys);
    }
}

// s (queries, keys) / sqrt(D), -infinity where the key is later than the query or does not exist.
void scale_and_mask(float* scores, int64_t queries, int64_t keys, int64_t padded_keys, int64_t first_query,
                    int64_t first_key, float inverse_root) {
    for (int64_t i = 0; i < queries; ++i) {
        float* __restrict row = scores + i * tile;
        const int64_t visible = std::min(keys, first_query + i - first_key + 1);
        for (int64_t j = 0; j < visible; ++j) row[j] *= inverse_root;
        for (int64_t j = visible; j < padded_keys; ++j) row[j] = -__builtin_inff();
    }
}

// Turns scores into e^(s - m') and rescales what was summed under the old maximum.
void softmax_step(float* scores, int64_t queries, int64_t padded_keys, float* maximum, float* denominator,
                  float* output, int64_t padded_dim) {
    for (int64_t i = 0; i < queries; ++i) {
        float* __restrict row = scores + i * tile;
        float largest = row[0];
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < padded_keys; ++j) largest = row[j] > largest ? row[j] : largest;
        const float new_maximum = std::max(maximum[i], largest);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < padded_keys; ++j) {
            row[j] = exponential(row[j] - new_maximum);
            sum += row[j];
        }
        const float rescale = exponential(maximum[i] - new_maximum);
        denominator[i] = denominator[i] * rescale + sum;
        maximum[i] = new_maximum;
        float* __restrict out = output + i * padded_dim;
        for (int64_t d = 0; d < padded_dim; ++d) out[d] *= rescale;
    }
}

// Hands out consecutive pieces of a thread's scratch; every piece starts on a cache line.
class Scratch {
  public:
    explicit Scratch(float* memory) : next_(memory) {}
    template <typename Element>
    Element* take(int64_t count) {
        static_assert(sizeof(Element) == sizeof(float));
        float* piece = next_;
        next_ += round_up(count, vector_lanes);
        return reinterpret_cast<Element*>(piece);
    }

  private:
    float* next_;
};

// Floats that Scratch hands out for one head at most; the backward pass needs the most.
int64_t scratch_floats(const HeadSizes& size) {
    return (6 * size.padded_dim + 2 * tile) * size.padded_positions + 6 * tile * size.padded_dim +
           5 * tile * tile;
}

template <typename T>
void forward_head(T* y, int64_t y_stride, float* log_sum_exp, const T* queries, const T* keys,
                  const T* values, int64_t stride, const HeadSizes& size, Scratch scratch) {
    using Element = typename TileElement<T>::type;
    constexpr int64_t width = element_width<Element>;
    const int64_t dim_elements = elements_for<Element>(size.dim);
    Element* keys_right = scratch.take<Element>(dim_elements * size.padded_positions);               // (D, T)
    Element* values_right = scratch.take<Element>(size.padded_positions / width * size.padded_dim);  // (T, D)
    Element* q = scratch.take<Element>(tile * dim_elements);        // (tile, D)
    Element* weights = scratch.take<Element>(tile * tile / width);  // (tile, tile)
    float* output = scratch.take<float>(tile * size.padded_dim);    // (tile, D)
    float* scores = scratch.take<float>(tile * tile);               // (tile, tile)
    float maximum[tile], denominator[tile];
    pack_right_transposed(keys_right, size.padded_positions, keys, stride, size.positions, size.dim);
    pack_right(values_right, size.padded_dim, values, stride, size.positions, size.dim);
    for (int64_t first_query = 0; first_query < size.positions; first_query += tile) {
        const int64_t query_count = std::min(tile, size.positions - first_query);
        pack_left(q, dim_elements, queries + first_query * stride, stride, query_count, size.dim);
        std::fill(output, output + query_count * size.padded_dim, 0.0f);
        std::fill(maximum, maximum + tile, -__builtin_inff());
        std::fill(denominator, denominator + tile, 0.0f);
        for (int64_t first_key = 0; first_key <= first_query; first_key += tile) {
            const int64_t key_count = std::min(tile, size.positions - first_key);
            const int64_t padded_keys = round_up(key_count, vector_lanes);
            const bool diagonal = first_key == first_query;
            for_query_strips(diagonal, query_count, key_count,
                             [&](int64_t first, int64_t count, int64_t visible) {
                                 tile_multiply(scores + first * tile, tile, q + first * dim_elements,
                                               dim_elements, keys_right + first_key, size.padded_positions,
                                               count, dim_elements, round_up(visible, vector_lanes), false);
                             });
            scale_and_mask(scores, query_count, key_count, padded_keys, first_query, first_key,
                           size.inverse_root);
            softmax_step(scores, query_count, padded_keys, maximum, denominator, output, size.padded_dim);
            pack_left(weights, tile / width, scores, tile, query_count, padded_keys);
            for_query_strips(
                diagonal, query_count, key_count, [&](int64_t first, int64_t count, int64_t visible) {
                    tile_multiply(output + first * size.padded_dim, size.padded_dim,
                                  weights + first * (tile / width), tile / width,
                                  values_right + first_key / width * size.padded_dim, size.padded_dim, count,
                                  elements_for<Element>(visible), size.padded_dim, true);
                });
        }
        for (int64_t i = 0; i < query_count; ++i) {
            const float inverse = 1.0f / denominator[i];
            for (int64_t d = 0; d < size.dim; ++d) output[i * size.padded_dim + d] *= inverse;
            log_sum_exp[first_query + i] = maximum[i] + std::log(denominator[i]);
        }
        store_rows(y + first_query * y_stride, y_stride, output, size.padded_dim, query_count, size.dim);
    }
}

// Key/value side of the backward pass: shared by the query heads of a group. Gradients are kept transposed,
// (D, T), so that the softmax weights are the right operand of their products and need no transposing.
template <typename Element>
struct KeyValueTiles {
    KeyValueTiles(Scratch& scratch, const HeadSizes& size)
        : keys_right(scratch.take<Element>(size.padded_positions / element_width<Element> * size.padded_dim)),
          keys_transposed(scratch.take<Element>(elements_for<Element>(size.dim) * size.padded_positions)),
          values_transposed(scratch.take<Element>(elements_for<Element>(size.dim) * size.padded_positions)),
          key_gradient(scratch.take<float>(size.dim * size.padded_positions)),
          value_gradient(scratch.take<float>(size.dim * size.padded_positions)) {
        std::fill(key_gradient, key_gradient + size.dim * size.padded_positions, 0.0f);
        std::fill(value_gradient, value_gradient + size.dim * size.padded_positions, 0.0f);
    }
    Element* keys_right;                           // (T, D), right operand of dq += ds k
    Element *keys_transposed, *values_transposed;  // (D, T), right operands of q kᵀ and dy vᵀ
    float *key_gradient, *value_gradient;          // (D, T)
};

// scores becomes the softmax weights p = e^(s - log_sum_exp); delta += rowsum(p ∘ dweights).
void softmax_weights(float* scores, const float* dweights, int64_t queries, int64_t padded_keys,
                     const float* log_sum_exp, float* delta) {
    for (int64_t i = 0; i < queries; ++i) {
        float* __restrict s = scores + i * tile;
        const float* __restrict d = dweights + i * tile;
        const float shift = log_sum_exp[i];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < padded_keys; ++j) {
            const float p = exponential(s[j] - shift);
            s[j] = p;
            // Where the mask hides the key, d was not computed: it may hold anything, also NaN.
            sum += p > 0.0f ? p * d[j] : p * 0.0f;
        }
        delta[i] += sum;
    }
}

// dweights becomes dscores = p ∘ (dweights - delta) / sqrt(D).
void softmax_backward(const float* weights, float* dweights, int64_t queries, int64_t padded_keys,
                      const float* delta, float inverse_root) {
    for (int64_t i = 0; i < queries; ++i) {
        const float* __restrict p = weights + i * tile;
        float* __restrict d = dweights + i * tile;
        const float mean = delta[i];
#pragma omp simd
        for (int64_t j = 0; j < padded_keys; ++j)
            d[j] = p[j] > 0.0f ? p[j] * (d[j] - mean) * inverse_root : p[j] * 0.0f;
    }
}

// One query head: writes dq, adds to the group's dk and dv. A strip of query-tile x T weights exists at a
// time: the first pass over the key tiles makes the weights and delta, the second the gradients. (delta also
// equals rowsum(dy ∘ y), but y is rounded, and where attention is nearly even that error is larger than the
// gradient.)
template <typename T, typename Element>
void backward_head(T* dqueries, const T* dy, int64_t y_stride, const T* queries, int64_t stride,
                   const float* log_sum_exp, const HeadSizes& size, const KeyValueTiles<Element>& kv,
                   Scratch scratch) {
    constexpr int64_t width = element_width<Element>;
    constexpr int64_t tile_elements = tile / width;
    const int64_t dim_elements = elements_for<Element>(size.dim);
    Element* q = scratch.take<Element>(tile * dim_elements);                     // (tile, D)
    Element* dout = scratch.take<Element>(tile * dim_elements);                  // (tile, D)
    Element* q_transposed = scratch.take<Element>(size.dim * tile_elements);     // (D, tile)
    Element* dout_transposed = scratch.take<Element>(size.dim * tile_elements);  // (D, tile)
    float* dq = scratch.take<float>(tile * size.padded_dim);                     // (tile, D)
    float* all_scores = scratch.take<float>(tile * size.padded_positions);       // (T / tile, tile, tile)
    float* all_dscores = scratch.take<float>(tile * size.padded_positions);      // (T / tile, tile, tile)
    Element* packed_weights = scratch.take<Element>(tile_elements * tile);       // right operand
    Element* packed_dscores = scratch.take<Element>(tile_elements * tile);       // right operand
    Element* dscores_left = scratch.take<Element>(tile * tile_elements);         // left operand
    float delta[tile];
    for (int64_t first_query = 0; first_query < size.positions; first_query += tile) {
        const int64_t query_count = std::min(tile, size.positions - first_query);
        const T* query_rows = queries + first_query * stride;
        const T* dout_rows = dy + first_query * y_stride;
        pack_left(q, dim_elements, query_rows, stride, query_count, size.dim);
        pack_left(dout, dim_elements, dout_rows, y_stride, query_count, size.dim);
        pack_left_transposed(q_transposed, tile_elements, query_rows, stride, query_count, size.dim);
        pack_left_transposed(dout_transposed, tile_elements, dout_rows, y_stride, query_count, size.dim);
        std::fill(delta, delta + tile, 0.0f);
        for (int64_t first_key = 0; first_key <= first_query; first_key += tile) {
            const int64_t key_count = std::min(tile, size.positions - first_key);
            const int64_t padded_keys = round_up(key_count, vector_lanes);
            float* scores = all_scores + first_key * tile;
            float* dscores = all_dscores + first_key * tile;
            for_query_strips(first_key == first_query, query_count, key_count,
                             [&](int64_t first, int64_t count, int64_t visible) {
                                 const int64_t columns = round_up(visible, vector_lanes);
                                 tile_multiply(scores + first * tile, tile, q + first * dim_elements,
                                               dim_elements, kv.keys_transposed + first_key,
                                               size.padded_positions, count, dim_elements, columns, false);
                                 tile_multiply(dscores + first * tile, tile, dout + first * dim_elements,
                                               dim_elements, kv.values_transposed + first_key,
                                               size.padded_positions, count, dim_elements, columns, false);
                             });
            scale_and_mask(scores, query_count, key_count, padded_keys, first_query, first_key,
                           size.inverse_root);
            softmax_weights(scores, dscores, query_count, padded_keys, log_sum_exp + first_query, delta);
        }
        for (int64_t first_key = 0; first_key <= first_query; first_key += tile) {
            const int64_t key_count = std::min(tile, size.positions - first_key);
            const int64_t padded_keys = round_up(key_count, vector_lanes);
            const float* weights = all_scores + first_key * tile;
            float* dscores = all_dscores + first_key * tile;
            softmax_backward(weights, dscores, query_count, padded_keys, delta, size.inverse_root);
            pack_right(packed_weights, tile, weights, tile, query_count, padded_keys);
            pack_right(packed_dscores, tile, dscores, tile, query_count, padded_keys);
            pack_left(dscores_left, tile_elements, dscores, tile, query_count, padded_keys);
            for_query_strips(
                first_key == first_query, query_count, key_count,
                [&](int64_t first, int64_t count, int64_t visible) {
                    const int64_t begin = first / width, inner = elements_for<Element>(count);
                    const int64_t columns = round_up(visible, vector_lanes);
                    tile_multiply(kv.value_gradient + first_key, size.padded_positions,
                                  dout_transposed + begin, tile_elements, packed_weights + begin * tile, tile,
                                  size.dim, inner, columns, true);
                    tile_multiply(kv.key_gradient + first_key, size.padded_positions, q_transposed + begin,
                                  tile_elements, packed_dscores + begin * tile, tile, size.dim, inner,
                                  columns, true);
                    tile_multiply(dq + first * size.padded_dim, size.padded_dim,
                                  dscores_left + first * tile_elements, tile_elements,
                                  kv.keys_right + first_key / width * size.padded_dim, size.padded_dim, count,
                                  elements_for<Element>(visible), size.padded_dim, first_key > 0);
                });
        }
        store_rows(dqueries + first_query * stride, stride, dq, size.padded_dim, query_count, size.dim);
    }
}

}  // namespace

void CpuBackend::compute(const AttentionForward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t y_stride = shape.heads * shape.head_dim, stride = shape.qkv_columns();
    const HeadSizes size(shape);
    with_compute_type(args.name, args.qkv.dtype, [&]<typename T>() {
        parallel_for(shape.batch * shape.heads, 1, [&](int64_t index, int64_t) {
            const int64_t b = index / shape.heads, h = index % shape.heads;
            const int64_t kv_head = h / (shape.heads / shape.kv_heads);
            const T* queries = args.qkv.as<T>() + b * shape.sequence * stride + h * shape.head_dim;
            const T* keys =
                args.qkv.as<T>() + b * shape.sequence * stride + (shape.heads + kv_head) * shape.head_dim;
            forward_head(args.y.as<T>() + b * shape.sequence * y_stride + h * shape.head_dim, y_stride,
                         args.log_sum_exp.as<float>() + index * shape.sequence, queries, keys,
                         keys + shape.kv_heads * shape.head_dim, stride, size,
                         Scratch(thread_scratch(scratch_floats(size))));
        });
    });
}

// The tiles of the backward pass live in each thread's scratch.
int64_t CpuBackend::attention_backward_workspace(const AttentionShape&) const {
    return 0;
}

void CpuBackend::compute(const AttentionBackward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t y_stride = shape.heads * shape.head_dim, stride = shape.qkv_columns();
    const HeadSizes size(shape);
    const int64_t heads_per_group = shape.heads / shape.kv_heads;
    with_compute_type(args.name, args.qkv.dtype, [&]<typename T>() {
        parallel_for(shape.batch * shape.kv_heads, 1, [&](int64_t index, int64_t) {
            const int64_t b = index / shape.kv_heads, kv_head = index % shape.kv_heads;
            const int64_t first_row = b * shape.sequence;
            const int64_t key_column = (shape.heads + kv_head) * shape.head_dim;
            const int64_t value_column = key_column + shape.kv_heads * shape.head_dim;
            const T* rows = args.qkv.as<T>() + first_row * stride;
            T* drows = args.dqkv.as<T>() + first_row * stride;
            using Element = typename TileElement<T>::type;
            Scratch scratch(thread_scratch(scratch_floats(size)));
            const KeyValueTiles<Element> kv(scratch, size);
            pack_right(kv.keys_right, size.padded_dim, rows + key_column, stride, size.positions, size.dim);
            pack_right_transposed(kv.keys_transposed, size.padded_positions, rows + key_column, stride,
                                  size.positions, size.dim);
            pack_right_transposed(kv.values_transposed, size.padded_positions, rows + value_column, stride,
                                  size.positions, size.dim);
            for (int64_t h = kv_head * heads_per_group; h < (kv_head + 1) * heads_per_group; ++h) {
                const int64_t offset = first_row * y_stride + h * shape.head_dim;
                backward_head(drows + h * shape.head_dim, args.dy.as<T>() + offset, y_stride,
                              rows + h * shape.head_dim, stride,
                              args.log_sum_exp.as<float>() + (b * shape.heads + h) * shape.sequence, size, kv,
                              scratch);
            }
            store_transposed(drows + key_column, stride, kv.key_gradient, size.padded_positions,
                             size.positions, size.dim);
            store_transposed(drows + value_column, stride, kv.value_gradient, size.padded_positions,
                             size.positions, size.dim);
        });
    });
}

}  // namespace train_qat
