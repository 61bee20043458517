// The backward pass of attention. It computes the weights again from log_sum_exp; matrices of queries and keys are
// kept with keys as rows, so that sums over keys run along vectors, and so that weights are left operands of the
// gradients of keys and values as they stand. With c = log2(e) / sqrt(D):
//     p = 2^(c k qᵀ - log2(e) log_sum_exp);  dp = v dyᵀ;  delta = columnsum(p ∘ dp);  dv += p dy;
//     ds = p ∘ (dp - delta);  dk += ds q;  dqᵀ = kᵀ ds;  at the end dk and dq are divided by sqrt(D)
#include "kernels/cpu/attention/head.h"
#include "kernels/cpu/attention/packing.h"
#include "kernels/cpu/attention/products.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/matmul_unit.h"

namespace train_qat {

namespace {

constexpr int64_t tile = 64;  // queries and keys of a tile
// Of a tile on the diagonal, products compute what strips of 16 keys need.
constexpr int64_t strip = 16;

// Where a tile of queries is, and which of them see a key.
struct TileOfQueries {
    int64_t first_query, queries;  // of the tile
    bool first_head;               // of the group
    // 0 or -1 for a vector of queries from first_query + column on.
    IntVector visible(int64_t key, int64_t column) const {
        const IntVector query = lane_numbers + static_cast<int32_t>(column);
        return (query >= static_cast<int32_t>(key - first_query)) & (query < static_cast<int32_t>(queries));
    }
};

// A key/value head, and the query heads that share it one after another. A strip of T x query tile of weights exists at
// a time: the first pass over the keys makes weights and delta, the second the gradients. (delta also equals
// rowsum(dy ∘ y), but y is rounded, and where attention is nearly even that error is larger than the gradient.)
template <typename Products, typename T>
class BackwardGroup {
    using Element = typename TileElement<T>::type;
    static constexpr int64_t width = element_width<Element>;

  public:
    BackwardGroup(const HeadSizes& size, Scratch scratch)
        : size_(size),
          inner_(room_for<Element>(size.dim)),
          columns_(round_up(size.dim, square)),
          keys_(scratch.take<Element>(size.padded_positions * inner_)),
          values_(scratch.take<Element>(size.padded_positions * inner_)),
          keys_transposed_(scratch.take<Element>(size.padded_dim * (size.padded_positions / width))),
          dkeys_(scratch.take<float>(size.padded_positions * size.padded_dim)),
          dvalues_(scratch.take<float>(size.padded_positions * size.padded_dim)),
          queries_transposed_(scratch.take<Element>(inner_ * tile)),
          douts_transposed_(scratch.take<Element>(inner_ * tile)),
          queries_(scratch.take<Element>(tile / width * size.padded_dim)),
          douts_(scratch.take<Element>(tile / width * size.padded_dim)),
          weights_(scratch.take<float>(size.padded_positions * tile)),
          dweights_(scratch.take<float>(size.padded_positions * tile)),
          left_(scratch.take<Element>(tile * (tile / width))),
          dscores_(scratch.take<Element>(size.padded_positions / width * tile)),
          dqueries_(scratch.take<float>(size.padded_dim * tile)),
          packing_(scratch.take<Element>(square * inner_)) {}

    void pack(const T* keys, const T* values, int64_t stride) {
        pack_left(keys_, size_.padded_positions, inner_, keys, stride, size_.positions, size_.dim);
        pack_left(values_, size_.padded_positions, inner_, values, stride, size_.positions, size_.dim);
        for (int64_t first = 0; first < size_.positions; first += tile) {
            pack_right(queries_, tile / width, size_.padded_dim, keys + first * stride, stride,
                       std::min(tile, size_.positions - first), size_.dim);
            transpose_elements(keys_transposed_ + first / width, size_.padded_positions / width, queries_,
                               size_.padded_dim, tile / width, size_.padded_dim);
        }
    }

    // Writes dq of a tile of queries, adds to dk and dv, which begin with those of the group's first head. All rows: the
    // tile's first query.
    void query_tile(T* dqueries, const T* douts, int64_t y_stride, const T* queries, int64_t stride,
                    const float* log_sum_exp, int64_t first_query, bool first_head) {
        const TileOfQueries at{first_query, std::min(tile, size_.positions - first_query), first_head};
        pack_queries(queries_transposed_, queries_, queries, stride, at.queries);
        pack_queries(douts_transposed_, douts_, douts, y_stride, at.queries);
        FloatVector shift[tile / vector_lanes] = {}, delta[tile / vector_lanes] = {};
        for (int64_t i = 0; i < at.queries; ++i)
            shift[i / vector_lanes][i % vector_lanes] = log_sum_exp[i] * log2_e;
        for (int64_t first_key = 0; first_key <= first_query; first_key += tile) {
            score_products(first_key, at);
            if (first_key < first_query && at.queries == tile)
                weights_of_tile<false>(first_key, at, shift, delta);
            else
                weights_of_tile<true>(first_key, at, shift, delta);
            add_products(dvalues_, douts_, first_key, at);
        }
        for (int64_t first_key = 0; first_key <= first_query; first_key += tile) {
            if (first_key < first_query && at.queries == tile)
                score_gradients_of_tile<false>(first_key, at, delta);
            else
                score_gradients_of_tile<true>(first_key, at, delta);
            add_products(dkeys_, queries_, first_key, at);
        }
        query_gradients(dqueries, stride, at);
    }

    void write(T* dkeys, T* dvalues, int64_t stride) const {
        for (int64_t t = 0; t < size_.positions; ++t)
            for (int64_t d = 0; d < size_.dim; d += vector_lanes) {
                const int64_t place = t * size_.padded_dim + d;
                store_lanes(dkeys + t * stride + d, load_vector(dkeys_ + place) * size_.inverse_root,
                            size_.dim - d);
                store_lanes(dvalues + t * stride + d, load_vector(dvalues_ + place), size_.dim - d);
            }
    }

  private:
    void pack_queries(Element* transposed, Element* right, const T* rows, int64_t stride, int64_t count) {
        pack_right_transposed(transposed, tile, rows, stride, count, tile, size_.dim, packing_);
        pack_right(right, tile / width, size_.padded_dim, rows, stride, count, size_.dim);
    }

    // function(first, rows, column): strips of keys of a tile with the first query, of the tile's, that sees one.
    template <typename Function>
    static void for_key_strips(bool diagonal, Function&& function) {
        if (diagonal)
            for (int64_t first = 0; first < tile; first += strip) function(first, strip, first);
        else
            function(0, tile, 0);
    }

    // k qᵀ and v dyᵀ.
    void score_products(int64_t first_key, const TileOfQueries& at) {
        for_key_strips(first_key == at.first_query, [&](int64_t first, int64_t rows, int64_t column) {
            const int64_t row = first_key + first, columns = round_up(at.queries, square) - column;
            if (columns <= 0) return;
            Products::multiply(weights_ + row * tile + column, tile, keys_ + row * inner_, inner_,
                               queries_transposed_ + column, tile, rows, elements_for<Element>(size_.dim),
                               columns, false);
            Products::multiply(dweights_ + row * tile + column, tile, values_ + row * inner_, inner_,
                               douts_transposed_ + column, tile, rows, elements_for<Element>(size_.dim),
                               columns, false);
        });
    }

    // gradient (keys, D) += left_ (keys, queries) right (queries, D). The first queries that see a key are on the diagonal.
    void add_products(float* gradient, const Element* right, int64_t first_key, const TileOfQueries& at) {
        for_key_strips(first_key == at.first_query, [&](int64_t first, int64_t rows, int64_t column) {
            const int64_t begin = column / inner_step * inner_step;
            if (begin >= at.queries) return;
            Products::multiply(gradient + (first_key + first) * size_.padded_dim, size_.padded_dim,
                               left_ + first * (tile / width) + begin / width, tile / width,
                               right + begin / width * size_.padded_dim, size_.padded_dim, rows,
                               elements_for<Element>(at.queries - begin), columns_,
                               !at.first_head || first_key < at.first_query);
        });
    }

    // Keys of a tile that queries around `column` see, in whole steps of a product.
    template <bool masked>
    static int64_t keys_seen(int64_t first_key, const TileOfQueries& at, int64_t column) {
        return masked ? std::min(tile, at.first_query - first_key + round_up(column + 1, inner_step)) : tile;
    }

    // Scores become weights, in weights_ and left_; delta += columnsum(p ∘ dp).
    template <bool masked>
    void weights_of_tile(int64_t first_key, const TileOfQueries& at, const FloatVector* shift,
                         FloatVector* delta) {
        const float factor = size_.inverse_root * log2_e;
        for (int64_t column = 0; column < tile; column += 2 * vector_lanes) {
            const int64_t keys = keys_seen<masked>(first_key, at, column);
            const int64_t v = column / vector_lanes;
            FloatVector sum[2] = {delta[v], delta[v + 1]};
            for (int64_t j = 0; j < keys; ++j) {
                float* p = weights_ + (first_key + j) * tile + column;
                float* dp = dweights_ + (first_key + j) * tile + column;
                FloatVector weight[2];
#pragma GCC unroll 2
                for (int64_t i = 0; i < 2; ++i) {
                    weight[i] = power_of_two(load_vector(p + i * vector_lanes) * factor - shift[v + i]);
                    FloatVector gradient = load_vector(dp + i * vector_lanes);
                    if constexpr (masked) {
                        // Where the mask hides the key, products may have computed nothing.
                        const IntVector visible = at.visible(first_key + j, column + i * vector_lanes);
                        weight[i] = visible ? weight[i] : FloatVector{};
                        gradient = visible ? gradient : FloatVector{};
                    }
                    sum[i] += weight[i] * gradient;
                    store_vector(p + i * vector_lanes, weight[i]);
                }
                store_left(left_ + j * (tile / width) + column / width, weight[0], weight[1]);
            }
            delta[v] = sum[0], delta[v + 1] = sum[1];
        }
    }

    // left_ and dscores_ become ds = p ∘ (dp - delta).
    template <bool masked>
    void score_gradients_of_tile(int64_t first_key, const TileOfQueries& at, const FloatVector* delta) {
        for (int64_t column = 0; column < tile; column += 2 * vector_lanes) {
            const int64_t keys = keys_seen<masked>(first_key, at, column);
            const int64_t v = column / vector_lanes;
            for (int64_t j = 0; j < keys; j += width) {
                Element* left = left_ + j * (tile / width) + column / width;
                Element* right = dscores_ + (first_key + j) / width * tile + column;
#pragma GCC unroll 2
                for (int64_t r = 0; r < width; ++r) {
                    const int64_t key = first_key + j + r;
                    FloatVector gradient[2];
#pragma GCC unroll 2
                    for (int64_t i = 0; i < 2; ++i) {
                        const int64_t place = key * tile + column + i * vector_lanes;
                        gradient[i] =
                            load_vector(weights_ + place) * (load_vector(dweights_ + place) - delta[v + i]);
                        if constexpr (masked)
                            gradient[i] =
                                at.visible(key, column + i * vector_lanes) ? gradient[i] : FloatVector{};
                    }
                    store_left(left + r * (tile / width), gradient[0], gradient[1]);
                    if constexpr (width == 1) store_left(right, gradient[0], gradient[1]);
                }
                if constexpr (width == 2)
                    // Neighbouring keys interleaved.
                    join_rows(right, reinterpret_cast<const bfloat16*>(left),
                              reinterpret_cast<const bfloat16*>(left + tile / width), inner_step);
            }
        }
    }

    // dqᵀ = kᵀ ds: of the tile on the diagonal its first half for all queries, its second half for the second half.
    void query_gradients(T* dqueries, int64_t stride, const TileOfQueries& at) {
        const int64_t half = at.first_query + tile / 2;
        static_assert(tile / 2 == inner_step);
        const auto add_keys = [&](int64_t first_key, int64_t keys, int64_t column) {
            Products::multiply(dqueries_ + column, tile, keys_transposed_ + first_key / width,
                               size_.padded_positions / width, dscores_ + first_key / width * tile + column,
                               tile, size_.dim, keys / width, tile - column, first_key > 0);
        };
        add_keys(0, half, 0);
        if (at.queries > tile / 2) add_keys(half, tile / 2, tile / 2);
        for (int64_t first = 0; first < at.queries; first += square)
            for (int64_t d = 0; d < size_.dim; d += square) {
                float turned[square * square];
                transpose_square(turned, square, dqueries_ + d * tile + first, tile);
                const int64_t count = std::min(square, at.queries - first);
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t v = 0; v < square; v += vector_lanes)
                        store_lanes(dqueries + (first + i) * stride + d + v,
                                    load_vector(turned + i * square + v) * size_.inverse_root,
                                    size_.dim - d - v);
            }
    }

    HeadSizes size_;
    int64_t inner_, columns_;  // D with padding, in elements and as columns of a product
    // Left operands: (T, D), (T, D) and (D, T).
    Element *keys_, *values_, *keys_transposed_;
    float *dkeys_, *dvalues_;  // (T, D)
    // Of a tile of queries. Right operands: (D, tile) and (tile, D).
    Element *queries_transposed_, *douts_transposed_, *queries_, *douts_;
    float *weights_, *dweights_;  // (T, tile); weights_ holds the scores first
    Element* left_;               // (tile of keys, tile): p, then ds
    Element* dscores_;            // right operand (T, tile)
    float* dqueries_;             // (D, tile)
    Element* packing_;
};

int64_t scratch_floats(const HeadSizes& size) {
    return size.padded_positions * (5 * size.padded_dim + 3 * tile) + 6 * tile * size.padded_dim +
           tile * tile;
}

}  // namespace

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
        with_matmul_unit<T>([&]<typename Unit>() {
            using Products = typename ProductsOf<Unit>::type;
            parallel_for(shape.batch * shape.kv_heads, 1, [&](int64_t index, int64_t) {
                const int64_t b = index / shape.kv_heads, kv_head = index % shape.kv_heads;
                const int64_t first_row = b * shape.sequence;
                const int64_t key_column = (shape.heads + kv_head) * shape.head_dim;
                const int64_t value_column = key_column + shape.kv_heads * shape.head_dim;
                const T* rows = args.qkv.as<T>() + first_row * stride;
                T* drows = args.dqkv.as<T>() + first_row * stride;
                [[maybe_unused]] const typename Products::Session session;
                BackwardGroup<Products, T> group(size, Scratch(thread_scratch(scratch_floats(size))));
                group.pack(rows + key_column, rows + value_column, stride);
                for (int64_t h = kv_head * heads_per_group; h < (kv_head + 1) * heads_per_group; ++h) {
                    const int64_t column = h * shape.head_dim;
                    const T* douts = args.dy.as<T>() + first_row * y_stride + column;
                    const float* log_sum_exp =
                        args.log_sum_exp.as<float>() + (b * shape.heads + h) * shape.sequence;
                    for (int64_t t = 0; t < shape.sequence; t += tile)
                        group.query_tile(drows + t * stride + column, douts + t * y_stride, y_stride,
                                         rows + t * stride + column, stride, log_sum_exp + t, t,
                                         h == kv_head * heads_per_group);
                }
                group.write(drows + key_column, drows + value_column, stride);
            });
        });
    });
}

}  // namespace train_qat
