// Causal attention with grouped key/value heads, tiled over queries and keys as in FlashAttention (arXiv
// 2205.14135): only a tile of the T x T weights exists at a time. For a tile of queries, over blocks of keys with
// running maximum m, denominator l and output o, in powers of two, c = log2(e) / sqrt(D):
//     s = q kᵀ;  m' = max(m, c rowmax s);  p = 2^(c s - m');
//     l = l 2^(m - m') + rowsum p;  o = o 2^(m - m') + p v
// and at the end y = o / l, log_sum_exp = ln(2) (m + log2 l).
#include "kernels/cpu/attention/head.h"
#include "kernels/cpu/attention/packing.h"
#include "kernels/cpu/attention/products.h"
#include "kernels/cpu/float_vector.h"
#include "kernels/cpu/matmul_unit.h"

namespace train_qat {

namespace {

constexpr int64_t query_tile = 32, key_block = 256;
// Of the keys that only some queries of a tile see, products compute what strips of 16 queries see.
constexpr int64_t strip = 16;
static_assert(query_tile % strip == 0 && key_block % key_panel == 0 && key_block % query_tile == 0);

// One query's state over its keys.
struct RunningSoftmax {
    FloatVector maximum;      // in every lane
    FloatVector denominator;  // a part in each lane
};

// Largest score, times factor, in every lane. Scores from `visible` to a multiple of 32 keys become -infinity.
inline FloatVector mask_and_maximum(float* scores, int64_t visible, float factor) {
    const int64_t padded = round_up(visible, inner_step);
    for (int64_t j = visible / vector_lanes * vector_lanes; j < padded; j += vector_lanes)
        store_vector(scores + j, lane_numbers < static_cast<int32_t>(visible - j)
                                     ? load_vector(scores + j)
                                     : FloatVector{} - __builtin_inff());
    FloatVector largest[2] = {load_vector(scores), load_vector(scores + vector_lanes)};
    for (int64_t j = 2 * vector_lanes; j < padded; j += 2 * vector_lanes) {
        largest[0] = larger_of(load_vector(scores + j), largest[0]);
        largest[1] = larger_of(load_vector(scores + j + vector_lanes), largest[1]);
    }
    return largest_of_lanes(larger_of(largest[0], largest[1])) * factor;
}

// weights = 2^(factor s - maximum) for a multiple of 32 keys. Returns parts of their sum.
template <typename Element>
FloatVector exponentials(const float* scores, Element* weights, int64_t keys, float factor,
                         const FloatVector& maximum) {
    FloatVector sum[2] = {};
    for (int64_t j = 0; j < keys; j += 2 * vector_lanes) {
        const FloatVector first = power_of_two(load_vector(scores + j) * factor - maximum);
        const FloatVector second = power_of_two(load_vector(scores + j + vector_lanes) * factor - maximum);
        sum[0] += first;
        sum[1] += second;
        store_left(weights + j / element_width<Element>, first, second);
    }
    return sum[0] + sum[1];
}

template <typename Products, typename T>
class ForwardHead {
    using Element = typename TileElement<T>::type;
    static constexpr int64_t width = element_width<Element>;

  public:
    ForwardHead(const HeadSizes& size, Scratch scratch)
        : size_(size),
          inner_(room_for<Element>(size.dim)),
          keys_(scratch.take<Element>(inner_ * size.padded_positions)),
          values_(scratch.take<Element>(size.padded_positions / width * size.padded_dim)),
          queries_(scratch.take<Element>(query_tile * inner_)),
          weights_(scratch.take<Element>(query_tile * weights_stride)),
          output_(scratch.take<float>(query_tile * size.padded_dim)),
          scores_(scratch.take<float>(query_tile * key_block)) {}

    void pack(const T* keys, const T* values, int64_t stride) {
        for (int64_t first = 0; first < size_.positions; first += key_panel)
            pack_right_transposed(keys_ + first * inner_, key_panel, keys + first * stride, stride,
                                  size_.positions - first, key_panel, size_.dim, queries_);
        pack_right(values_, size_.padded_positions / width, size_.padded_dim, values, stride, size_.positions,
                   size_.dim);
    }

    // y and queries: rows of this tile's first query.
    void tile(T* y, int64_t y_stride, float* log_sum_exp, const T* queries, int64_t stride,
              int64_t first_query) {
        const int64_t count = std::min(query_tile, size_.positions - first_query);
        RunningSoftmax states[query_tile];
        pack_left(queries_, query_tile, inner_, queries, stride, count, size_.dim);
        const int64_t reach = first_query + count;
        for (int64_t first_key = 0; first_key < reach; first_key += key_block) {
            const int64_t keys = std::min(key_block, reach - first_key);
            const bool all_visible = first_key + keys <= first_query + 1;
            const int64_t step = all_visible ? count : strip;
            for (int64_t first = 0; first < count; first += step) {
                const int64_t rows = std::min(step, count - first);
                strip_of_block(states, first, rows, first_query, first_key,
                               std::min(keys, first_query + first + rows - first_key));
            }
        }
        write(y, y_stride, log_sum_exp, states, count);
    }

  private:
    // Queries [first, first + rows) of the tile, of which the last sees `visible` keys of the block.
    void strip_of_block(RunningSoftmax* states, int64_t first, int64_t rows, int64_t first_query,
                        int64_t first_key, int64_t visible) {
        const float factor = size_.inverse_root * log2_e;
        float* scores = scores_ + first * key_block;
        Element* weights = weights_ + first * weights_stride;
        float* output = output_ + first * size_.padded_dim;
        for (int64_t panel = 0; panel < visible; panel += key_panel)
            Products::multiply(scores + panel, key_block, queries_ + first * inner_, inner_,
                               keys_ + (first_key + panel) * inner_, key_panel, rows,
                               elements_for<Element>(size_.dim),
                               round_up(std::min(key_panel, visible - panel), square), false);
        // All maxima before all exponentials: each waits for several results, which others fill.
        const auto seen = [&](int64_t i) {
            return std::min(visible, first_query + first + i - first_key + 1);
        };
        FloatVector maxima[query_tile];
        for (int64_t i = 0; i < rows; ++i)
            maxima[i] = mask_and_maximum(scores + i * key_block, seen(i), factor);
        if (first_key > 0) rescale(states + first, maxima, output, rows);
        for (int64_t i = 0; i < rows; ++i) {
            const FloatVector sum = exponentials(scores + i * key_block, weights + i * weights_stride,
                                                 round_up(seen(i), inner_step), factor, maxima[i]);
            RunningSoftmax& state = states[first + i];
            state = {maxima[i], first_key > 0 ? state.denominator + sum : sum};
        }
        Products::multiply(output, size_.padded_dim, weights, weights_stride,
                           values_ + first_key / width * size_.padded_dim, size_.padded_dim, rows,
                           elements_for<Element>(visible), round_up(size_.dim, square), first_key > 0);
    }

    // Maxima of a block become those of all blocks; earlier sums are brought under them.
    void rescale(RunningSoftmax* states, FloatVector* maxima, float* output, int64_t rows) const {
        for (int64_t i = 0; i < rows; ++i) {
            maxima[i] = larger_of(maxima[i], states[i].maximum);
            const FloatVector factor = power_of_two(states[i].maximum - maxima[i]);
            states[i].denominator *= factor;
            for (int64_t d = 0; d < size_.padded_dim; d += vector_lanes) {
                float* place = output + i * size_.padded_dim + d;
                store_vector(place, load_vector(place) * factor);
            }
        }
    }

    void write(T* y, int64_t y_stride, float* log_sum_exp, const RunningSoftmax* states,
               int64_t count) const {
        float maximum[query_tile] = {}, denominator[query_tile] = {};
        for (int64_t i = 0; i < count; ++i) {
            const FloatVector sum = sum_of_lanes(states[i].denominator);
            const FloatVector inverse = 1.0f / sum;
            for (int64_t d = 0; d < size_.dim; d += vector_lanes)
                store_lanes(y + i * y_stride + d, load_vector(output_ + i * size_.padded_dim + d) * inverse,
                            size_.dim - d);
            maximum[i] = states[i].maximum[0];
            denominator[i] = sum[0];
        }
        for (int64_t i = 0; i < count; i += vector_lanes) {
            const FloatVector logarithm = binary_logarithm(load_vector(denominator + i));
            store_lanes(log_sum_exp + i, (load_vector(maximum + i) + logarithm) * ln_2, count - i);
        }
    }

    static constexpr int64_t weights_stride = key_block / width;
    HeadSizes size_;
    int64_t inner_;  // elements of D with padding
    Element *keys_, *values_, *queries_, *weights_;
    float *output_, *scores_;
};

int64_t scratch_floats(const HeadSizes& size) {
    return 2 * size.padded_dim * size.padded_positions + query_tile * (2 * size.padded_dim + 2 * key_block);
}

}  // namespace

void CpuBackend::compute(const AttentionForward& args) {
    const AttentionShape& shape = args.shape;
    const int64_t y_stride = shape.heads * shape.head_dim, stride = shape.qkv_columns();
    const HeadSizes size(shape);
    with_compute_type(args.name, args.qkv.dtype, [&]<typename T>() {
        with_matmul_unit<T>([&]<typename Unit>() {
            using Products = typename ProductsOf<Unit>::type;
            parallel_for(shape.batch * shape.heads, 1, [&](int64_t index, int64_t) {
                const int64_t b = index / shape.heads, h = index % shape.heads;
                const int64_t kv_head = h / (shape.heads / shape.kv_heads);
                const T* rows = args.qkv.as<T>() + b * shape.sequence * stride;
                const T* keys = rows + (shape.heads + kv_head) * shape.head_dim;
                T* y = args.y.as<T>() + b * shape.sequence * y_stride + h * shape.head_dim;
                [[maybe_unused]] const typename Products::Session session;
                ForwardHead<Products, T> head(size, Scratch(thread_scratch(scratch_floats(size))));
                head.pack(keys, keys + shape.kv_heads * shape.head_dim, stride);
                for (int64_t t = 0; t < shape.sequence; t += query_tile)
                    head.tile(y + t * y_stride, y_stride,
                              args.log_sum_exp.as<float>() + index * shape.sequence + t,
                              rows + t * stride + h * shape.head_dim, stride, t);
            });
        });
    });
}

}  // namespace train_qat
