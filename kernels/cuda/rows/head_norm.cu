// RMSNorm (arXiv 1910.07467) of each query head and each key head by itself, with the linear layer's scales before it:
//     forward:   x'   = column_scale ∘ x
//                rstd = 1 / sqrt(mean_D(x'²) + epsilon)
//                y    = x' * rstd * weight
//     backward:  with n = x' * rstd and h = dy ∘ weight
//                dx       = column_scale ∘ (rstd * (h - n * mean_D(h ∘ n)))
//                dweight (+)= sum over rows and heads of dy ∘ n
// Values are only scaled, in both directions.
//
// Floor: forward reads x and writes y; backward reads dy and x and writes dx; each once. A team of lanes takes a head: each
// lane holds at most eight of its numbers, so that a head is read once and its sums are shuffles within a warp. Teams side
// by side take heads side by side, for a tile of rows: scales and weights are read once a tile, and the tile's part of
// dweight stays in registers until its heads are summed. The tiles' parts are summed by a second kernel: column_sums.h.
#include <initializer_list>

#include "kernels/checks.h"
#include "kernels/cuda/rows/column_sums.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 16;  // of the forward pass
constexpr int most_threads = 256;
constexpr int lane_numbers = 8;  // of a head, side by side
static_assert(32 * lane_numbers == most_normed_head_dim);

struct Heads {
    int64_t rows, columns;
    int queries, normed, all;  // heads: H, H + G, H + 2G
    int width;                 // D
    int team;                  // lanes of a head, a power of two
    int tile;                  // rows of a block
    // Backward, in shared memory: of each warp its lanes' first numbers, then their second ones, `pitch` apart: neither
    // lanes nor columns side by side share a bank.
    int pitch;
};

// Where in its head the lane's numbers begin.
CU_DEVICE int place_in_head(const Heads& s) {
    return (lane_index() & (s.team - 1)) * lane_numbers;
}

// Numbers of an access: as many as 16 bytes hold where `whole`, otherwise one. The sums are the same.
template <bool whole, typename T>
constexpr int access_numbers = whole ? 16 / sizeof(T) : 1;

// `fill` beyond the head, and everywhere when there is none.
template <bool whole, typename T>
CU_DEVICE void load_part(T (&part)[lane_numbers], const T* head, const Heads& s, T fill) {
    constexpr int step = access_numbers<whole, T>;
    CU_UNROLL
    for (int i = 0; i < lane_numbers; i += step) {
        const int place = place_in_head(s) + i;
        const bool present = head != nullptr && place < s.width;
        Vector<T, step> values;
        if (present) values = load_vector<step>(head + place);
        CU_UNROLL
        for (int j = 0; j < step; ++j) part[i + j] = present ? values[j] : fill;
    }
}

template <bool whole, typename T>
CU_DEVICE void store_part(T* head, const float (&part)[lane_numbers], const Heads& s) {
    constexpr int step = access_numbers<whole, T>;
    CU_UNROLL
    for (int i = 0; i < lane_numbers; i += step) {
        const int place = place_in_head(s) + i;
        if (place >= s.width) continue;
        Vector<T, step> values;
        CU_UNROLL
        for (int j = 0; j < step; ++j) values[j] = static_cast<T>(part[i + j]);
        store_vector<step>(head + place, values);
    }
}

// The same bits in every lane of the team.
CU_DEVICE float sum_over_team(float value, int team) {
    for (int bits = team / 2; bits > 0; bits /= 2) value += shuffle_xor(value, bits);
    return value;
}

// The lane's scales and weights of a head; without a head, and of values, what does nothing.
template <bool whole>
CU_DEVICE void load_columns(float (&scale)[lane_numbers], float (&weight)[lane_numbers],
                            const float* column_scale, const float* query_weight, const float* key_weight,
                            int head, const Heads& s) {
    const bool scaled = column_scale != nullptr && head < s.all;
    load_part<whole>(scale, scaled ? column_scale + head * s.width : nullptr, s, 1.0f);
    const float* weights = head < s.queries ? query_weight : head < s.normed ? key_weight : nullptr;
    load_part<whole>(weight, weights, s, 0.0f);
}

template <typename T>
struct Forward {
    T* y;
    float* rstd;
    const T* x;
    const float *column_scale, *query_weight, *key_weight;
    float epsilon;
};

// Two blocks on a multiprocessor, of both kernels: without that demand the compiler saves registers until it spills them.
// Block x: rows tile * x ... All lanes of a warp stay together, also those whose team has no head.
template <typename T, bool whole>
__global__ void __launch_bounds__(most_threads, 2) normalize_heads(Forward<T> p, Heads s) {
    // Rows whose loads go out together: nothing moves a load above a store.
    constexpr int in_flight = 4 / sizeof(T);
    const int64_t tile = int64_t{blockIdx.x} * s.tile;
    const int count = s.rows - tile < s.tile ? static_cast<int>(s.rows - tile) : s.tile;
    const int teams = static_cast<int>(blockDim.x) / s.team, own = static_cast<int>(threadIdx.x) / s.team;
    for (int first = 0; first < s.all; first += teams) {
        const int head = first + own;
        float scale[lane_numbers], weight[lane_numbers];
        load_columns<whole>(scale, weight, p.column_scale, p.query_weight, p.key_weight, head, s);
        for (int row = 0; row < count; row += in_flight) {
            const int64_t place = (tile + row) * s.columns + head * s.width;
            T x[in_flight][lane_numbers];
            CU_UNROLL
            for (int i = 0; i < in_flight; ++i) {
                const bool present = head < s.all && row + i < count;
                load_part<whole>(x[i], present ? p.x + place + i * s.columns : nullptr, s, T(0.0f));
            }
            CU_UNROLL
            for (int i = 0; i < in_flight; ++i) {
                float scaled[lane_numbers], squares = 0;
                CU_UNROLL
                for (int j = 0; j < lane_numbers; ++j) {
                    scaled[j] = scale[j] * static_cast<float>(x[i][j]);
                    squares += scaled[j] * scaled[j];
                }
                const float mean = sum_over_team(squares, s.team) / static_cast<float>(s.width);
                if (head >= s.all || row + i >= count) continue;
                const float rstd = 1.0f / sqrtf(mean + p.epsilon);
                if (head < s.normed) {
                    CU_UNROLL
                    for (int j = 0; j < lane_numbers; ++j) scaled[j] = scaled[j] * rstd * weight[j];
                    if (threadIdx.x % s.team == 0) store(p.rstd + (tile + row + i) * s.normed + head, rstd);
                }
                store_part<whole>(p.y + place + i * s.columns, scaled, s);
            }
        }
    }
}

template <typename T>
struct Backward {
    T* dx;
    float* partials;  // (2, tiles, D): the tiles' parts of dquery_weight, then of dkey_weight
    const T *dy, *x;
    const float *rstd, *column_scale, *query_weight, *key_weight;
};

// One head of a row: dx, and what it adds to dweight.
template <typename T>
CU_DEVICE void head_gradient(float (&dx)[lane_numbers], float (&dweight)[lane_numbers],
                             const T (&dy)[lane_numbers], const T (&x)[lane_numbers],
                             const float (&scale)[lane_numbers], const float (&weight)[lane_numbers],
                             float rstd, bool normed, const Heads& s) {
    float dot = 0;  // of h and n
    CU_UNROLL
    for (int j = 0; j < lane_numbers; ++j) {
        const float product = static_cast<float>(dy[j]) * (scale[j] * static_cast<float>(x[j]) * rstd);
        dweight[j] += product;
        dot += product * weight[j];
    }
    const float shrink = rstd * rstd * (sum_over_team(dot, s.team) / static_cast<float>(s.width));
    CU_UNROLL
    for (int j = 0; j < lane_numbers; ++j) {
        const float d = static_cast<float>(dy[j]), element = scale[j] * static_cast<float>(x[j]);
        dx[j] = scale[j] * (normed ? rstd * (d * weight[j]) - shrink * element : d);
    }
}

// The block's sum of dweight over heads, into the tile's row of partial sums: over the teams of a warp, then over warps.
CU_DEVICE void sum_over_heads(float* partial, float* shared, float (&dweight)[lane_numbers], const Heads& s) {
    CU_UNROLL
    for (int j = 0; j < lane_numbers; ++j) {
        for (int bits = s.team; bits < 32; bits *= 2) dweight[j] += shuffle_xor(dweight[j], bits);
        if (lane_index() < s.team)
            store_shared(shared + (warp_index() * lane_numbers + j) * s.pitch + lane_index(), dweight[j]);
    }
    block_sync();
    for (int c = static_cast<int>(threadIdx.x); c < s.width; c += static_cast<int>(blockDim.x)) {
        const float* sums = shared + c % lane_numbers * s.pitch + c / lane_numbers;
        float sum = 0;
        for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp)
            sum += load_shared(sums + warp * lane_numbers * s.pitch);
        store(partial + c, sum);
    }
    block_sync();
}

// Block x: rows tile * x ... A lane reads its part of a row before it writes it: in place is safe.
template <typename T, bool whole>
__global__ void __launch_bounds__(most_threads, 2) head_gradients(Backward<T> p, Heads s) {
    constexpr int in_flight = 4 / sizeof(T);
    CU_DYN_SHARED(float, shared);  // (warps, lane_numbers, pitch)
    const int64_t tile = int64_t{blockIdx.x} * s.tile;
    const int count = s.rows - tile < s.tile ? static_cast<int>(s.rows - tile) : s.tile;
    const int teams = static_cast<int>(blockDim.x) / s.team, own = static_cast<int>(threadIdx.x) / s.team;
    float dquery[lane_numbers] = {}, dkey[lane_numbers] = {};
    for (int first = 0; first < s.all; first += teams) {
        const int head = first + own;
        float scale[lane_numbers], weight[lane_numbers], dweight[lane_numbers] = {};
        load_columns<whole>(scale, weight, p.column_scale, p.query_weight, p.key_weight, head, s);
        for (int row = 0; row < count; row += in_flight) {
            const int64_t place = (tile + row) * s.columns + head * s.width;
            T dy[in_flight][lane_numbers], x[in_flight][lane_numbers];
            float rstd[in_flight];
            CU_UNROLL
            for (int i = 0; i < in_flight; ++i) {
                const bool present = head < s.all && row + i < count, normed = present && head < s.normed;
                load_part<whole>(dy[i], present ? p.dy + place + i * s.columns : nullptr, s, T(0.0f));
                load_part<whole>(x[i], normed ? p.x + place + i * s.columns : nullptr, s, T(0.0f));
                rstd[i] = normed ? load(p.rstd + (tile + row + i) * s.normed + head) : 0.0f;
            }
            CU_UNROLL
            for (int i = 0; i < in_flight; ++i) {
                float dx[lane_numbers];
                head_gradient(dx, dweight, dy[i], x[i], scale, weight, rstd[i], head < s.normed, s);
                if (head < s.all && row + i < count) store_part<whole>(p.dx + place + i * s.columns, dx, s);
            }
        }
        CU_UNROLL
        for (int j = 0; j < lane_numbers; ++j) {
            dquery[j] += head < s.queries ? dweight[j] : 0.0f;
            dkey[j] += head >= s.queries && head < s.normed ? dweight[j] : 0.0f;
        }
    }
    float* partial = p.partials + int64_t{blockIdx.x} * s.width;
    sum_over_heads(partial, shared, dquery, s);
    sum_over_heads(partial + int64_t{gridDim.x} * s.width, shared, dkey, s);
}

Heads heads_of(const AttentionShape& shape, int64_t tile) {
    Heads s{shape.rows(),
            shape.qkv_columns(),
            static_cast<int>(shape.heads),
            static_cast<int>(shape.normed_heads()),
            static_cast<int>(shape.heads + 2 * shape.kv_heads),
            static_cast<int>(shape.head_dim),
            1,
            static_cast<int>(tile),
            0};
    while (s.team * lane_numbers < s.width) s.team *= 2;
    s.pitch = s.team | 4;
    return s;
}

// Calls launch.template operator()<T, whole>(); `floats` start where those of a head's columns do.
template <typename Launch>
void with_accesses(const char* operation, const AttentionShape& shape, std::initializer_list<Tensor> rows,
                   std::initializer_list<Tensor> floats, Launch&& launch) {
    with_compute_type(operation, rows.begin()->dtype, [&]<typename T>() {
        bool whole = true;
        for (const Tensor& tensor : rows)
            whole = whole && rows_aligned<access_numbers<true, T>>(shape.head_dim, tensor.as<T>());
        for (const Tensor& tensor : floats)
            whole = whole && vector_aligned<access_numbers<true, float>>(tensor.as<float>());
        if (whole)
            launch.template operator()<T, true>();
        else
            launch.template operator()<T, false>();
    });
}

}  // namespace

void head_norm_forward(Device& device, const HeadNormForward& a) {
    const Heads s = heads_of(a.shape, tile_rows);
    const unsigned threads = balanced_threads(int64_t{s.all} * s.team, most_threads);
    with_accesses(a.name, a.shape, {a.x, a.y}, {a.column_scale, a.query_weight, a.key_weight},
                  [&]<typename T, bool whole>() {
                      const Forward<T> p{a.y.as<T>(),
                                         a.rstd.as<float>(),
                                         a.x.as<T>(),
                                         a.column_scale.as<float>(),
                                         a.query_weight.as<float>(),
                                         a.key_weight.as<float>(),
                                         a.epsilon};
                      CU_LAUNCH((normalize_heads<T, whole>), blocks_for(s.rows, tile_rows), threads, 0,
                                device.stream(), p, s);
                  });
}

// The tiles' parts of dquery_weight, then of dkey_weight.
int64_t head_norm_backward_workspace(const AttentionShape& shape) {
    return 2 * partial_sum_bytes(shape.rows(), shape.head_dim);
}

void head_norm_backward(Device& device, const HeadNormBackward& a) {
    const Heads s = heads_of(a.shape, summed_rows(a.shape.rows()));
    const int64_t tiles = blocks_for(s.rows, s.tile);
    const unsigned threads = balanced_threads(int64_t{s.all} * s.team, most_threads);
    const unsigned shared_bytes =
        threads / 32 * lane_numbers * static_cast<unsigned>(s.pitch) * sizeof(float);
    float* partials = static_cast<float*>(a.workspace);
    with_accesses(a.name, a.shape, {a.x, a.dy, a.dx}, {a.column_scale, a.query_weight, a.key_weight},
                  [&]<typename T, bool whole>() {
                      const Backward<T> p{a.dx.as<T>(),
                                          partials,
                                          a.dy.as<T>(),
                                          a.x.as<T>(),
                                          a.rstd.as<float>(),
                                          a.column_scale.as<float>(),
                                          a.query_weight.as<float>(),
                                          a.key_weight.as<float>()};
                      CU_LAUNCH((head_gradients<T, whole>), static_cast<unsigned>(tiles), threads,
                                shared_bytes, device.stream(), p, s);
                  });
    sum_partials(device, a.dquery_weight.as<float>(), partials, tiles, s.width, a.accumulate_weight);
    sum_partials(device, a.dkey_weight.as<float>(), partials + tiles * s.width, tiles, s.width,
                 a.accumulate_weight);
}

}  // namespace train_qat::CU_BACKEND
