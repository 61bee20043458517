// Rotary position embedding (arXiv 2104.09864) in the half-split convention: numbers i and i + D/2 of a head form a pair
// that turns by the angle φ = t * theta^(-2i/D).
//     forward:   a' = a cos φ - b sin φ     of a and b times their column_scale
//                b' = b cos φ + a sin φ
//     backward:  the other way round, then times column_scale
//
// Floor: qkv read and written, once. A block takes up to 512 vectors of pairs - for most models all heads - of
// `tile_rows` rows: it reads the sines and cosines of its positions into shared memory once for all heads, and each
// thread the scales of its columns once for all rows.
#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 32;
constexpr int most_threads = 512;
// Pairs of a thread, also of bfloat16: the float32 tables then come in conflict-free accesses of 16 bytes.
constexpr int pairs = 4;

struct RopeShape {
    int64_t rows, columns, sequence;
    int half;            // D / 2
    int vectors;         // of pairs in a row, as many as this call changes
    int turned_vectors;  // of them in queries and keys
    int tile;            // rows of a block, at most tile_rows
};

// Sines and cosines of the tile's positions, each (tile, half).
template <int width>
CU_DEVICE void load_tables(float* shared_cosines, float* shared_sines, const float* cosines,
                           const float* sines, int64_t first, int count, const RopeShape& s) {
    for (int i = static_cast<int>(threadIdx.x) * width; i < count * s.half;
         i += static_cast<int>(blockDim.x) * width) {
        const int64_t position = (first + i / s.half) % s.sequence;
        const int64_t from = position * s.half + i % s.half;
        store_shared_vector<width>(shared_cosines + i, load_vector<width>(cosines + from));
        store_shared_vector<width>(shared_sines + i, load_vector<width>(sines + from));
    }
}

// One vector of pairs: forward scales, then turns; backward turns the other way, then scales.
template <bool backward, typename T, int width>
CU_DEVICE void turn(Vector<T, width>& first, Vector<T, width>& second, const Vector<float, width>& cosine,
                    const Vector<float, width>& sine, const float (&first_scale)[width],
                    const float (&second_scale)[width]) {
    CU_UNROLL
    for (int j = 0; j < width; ++j) {
        float a = static_cast<float>(first[j]), b = static_cast<float>(second[j]);
        if constexpr (backward) {
            const float turned_a = a * cosine[j] + b * sine[j], turned_b = b * cosine[j] - a * sine[j];
            a = turned_a * first_scale[j];
            b = turned_b * second_scale[j];
        } else {
            const float scaled_a = a * first_scale[j], scaled_b = b * second_scale[j];
            a = scaled_a * cosine[j] - scaled_b * sine[j];
            b = scaled_b * cosine[j] + scaled_a * sine[j];
        }
        first[j] = static_cast<T>(a);
        second[j] = static_cast<T>(b);
    }
}

template <typename T, int width>
CU_DEVICE void scale_only(Vector<T, width>& values, const float (&scale)[width]) {
    CU_UNROLL
    for (int j = 0; j < width; ++j) values[j] = static_cast<T>(static_cast<float>(values[j]) * scale[j]);
}

// Block (x, y): rows tile * x ..., vectors blockDim * y ... of pairs.
template <typename T, int width, bool backward>
__global__ void __launch_bounds__(most_threads)
    turn_rows(T* qkv, const float* cosines, const float* sines, const float* column_scale, RopeShape s) {
    CU_DYN_SHARED(float, tables);
    float* shared_cosines = tables;
    float* shared_sines = tables + s.tile * s.half;
    const int64_t tile = int64_t{blockIdx.x} * s.tile;
    const int count = s.rows - tile < s.tile ? static_cast<int>(s.rows - tile) : s.tile;
    const int first_vector = static_cast<int>(blockIdx.y * blockDim.x);
    if (first_vector < s.turned_vectors)
        load_tables<width>(shared_cosines, shared_sines, cosines, sines, tile, count, s);
    block_sync();
    const int vector = first_vector + static_cast<int>(threadIdx.x);
    if (vector >= s.vectors) return;

    const int per_head = s.half / width;
    const int pair = vector % per_head * width;  // within its head
    const int64_t column = int64_t{vector / per_head} * 2 * s.half + pair;
    float first_scale[width], second_scale[width];
    load_scale(first_scale, column_scale != nullptr ? column_scale + column : nullptr);
    load_scale(second_scale, column_scale != nullptr ? column_scale + column + s.half : nullptr);

    // Rows whose loads go out together, 64 bytes a thread: nothing moves a load above a store.
    constexpr int in_flight = 8 / sizeof(T);
    for (int row = 0; row < count; row += in_flight) {
        T* here = qkv + (tile + row) * s.columns + column;
        Vector<T, width> first[in_flight], second[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (row + i >= count) continue;
            first[i] = load_vector<width>(here + i * s.columns);
            second[i] = load_vector<width>(here + i * s.columns + s.half);
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (row + i >= count) return;
            if (vector < s.turned_vectors) {
                const int place = (row + i) * s.half + pair;
                turn<backward>(first[i], second[i], load_shared_vector<width>(shared_cosines + place),
                               load_shared_vector<width>(shared_sines + place), first_scale, second_scale);
            } else {
                scale_only(first[i], first_scale);
                scale_only(second[i], second_scale);
            }
            store_vector<width>(here + i * s.columns, first[i]);
            store_vector<width>(here + i * s.columns + s.half, second[i]);
        }
    }
}

template <bool backward>
void launch_rope(const char* operation, CuStream stream, const Tensor& qkv, const Tensor& cosines,
                 const Tensor& sines, const Tensor& column_scale, const AttentionShape& shape) {
    with_compute_type(operation, qkv.dtype, [&]<typename T>() {
        const int64_t half = shape.head_dim / 2;
        const bool aligned = rows_aligned<pairs>(half, qkv.as<T>(), cosines.as<float>(), sines.as<float>(),
                                                 column_scale.as<float>());
        with_width<pairs>(aligned, [&]<int width>() {
            RopeShape s{shape.rows(), shape.qkv_columns(), shape.sequence, static_cast<int>(half), 0, 0, 0};
            s.turned_vectors = static_cast<int>((shape.heads + shape.kv_heads) * half / width);
            // Values are only scaled: without scales they stay as they are.
            s.vectors = column_scale.empty() ? s.turned_vectors : static_cast<int>(s.columns / 2 / width);
            // Heads beyond any in use (D > 256) get smaller tiles, so that the tables fit into 32 KiB.
            s.tile = static_cast<int>(std::clamp<int64_t>(4096 / half, 1, tile_rows));
            const unsigned threads = balanced_threads(s.vectors, most_threads);
            const dim3 grid(blocks_for(s.rows, s.tile), blocks_for(s.vectors, threads));
            const auto shared_bytes = static_cast<unsigned>(2 * s.tile * half * sizeof(float));
            CU_LAUNCH((turn_rows<T, width, backward>), grid, threads, shared_bytes, stream, qkv.as<T>(),
                      cosines.as<float>(), sines.as<float>(), column_scale.as<float>(), s);
        });
    });
}

}  // namespace

void rope_forward(Device& device, const RopeForward& a) {
    launch_rope<false>(a.name, device.stream(), a.qkv, a.cosines, a.sines, a.column_scale, a.shape);
}

void rope_backward(Device& device, const RopeBackward& a) {
    launch_rope<true>(a.name, device.stream(), a.dqkv, a.cosines, a.sines, a.column_scale, a.shape);
}

}  // namespace train_qat::CU_BACKEND
