// RMSNorm (arXiv 1910.07467) with the residual addition before it, and its backward pass with the cast for the next
// linear layer behind it.
//     forward:   r    = residual_in + column_scale ∘ branch
//                rstd = 1 / sqrt(mean(r²) + epsilon)
//                y    = r * rstd * weight
//     backward:  with n = r * rstd and h = dy ∘ weight
//                d_residual (+)= rstd * (h - n * mean(h ∘ n))
//                dweight    (+)= sum_m dy ∘ n
//                dz           = column_scale ∘ d_residual
//
// Floor: forward reads residual_in and branch and writes residual_out and y; backward reads dy, residual and d_residual
// and writes d_residual and dz; each once. A block takes a tile of rows, one after the other, and a thread keeps what
// belongs to its columns in shared memory, as if in registers, of which there are too few for any C: the row between
// the two passes over it, weight and column_scale, the tile's part of dweight. Rows too long for that (over 7,500
// columns on an A100, backward) are read again, out of the L2 cache mostly.
//
// Measured (H200, 16,384 rows of 2048): forward 3,373 GB/s and backward 2,886, when nvcc had torn their vector stores
// into one for each number; a kernel of twice the reads but whole stores (dev/cuda/rmsnorm.cu, 3) reached 3,959. Since
// store_vector is one instruction no card has timed them; what could replace them waits there.
//
// The tiles' parts of dweight are summed by a second kernel: column_sums.h.
#include <algorithm>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda/rows/column_sums.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int most_threads = 512;
constexpr int vector_width = 4;

// What a thread has put aside for itself: no barriers.
template <bool shared, int width, typename T>
CU_DEVICE Vector<T, width> read_kept(const T* address) {
    if constexpr (shared)
        return load_shared_vector<width>(address);
    else
        return load_vector<width>(address);
}
template <bool shared, int width, typename T>
CU_DEVICE void keep(T* address, const Vector<T, width>& value) {
    if constexpr (shared)
        store_shared_vector<width>(address, value);
    else
        store_vector<width>(address, value);
}

// The thread's columns of `values` into shared memory.
template <int width>
CU_DEVICE void keep_columns(float* shared, const float* values, int columns) {
    const int step = static_cast<int>(blockDim.x) * width;
    for (int c = static_cast<int>(threadIdx.x) * width; c < columns; c += step)
        store_shared_vector<width>(shared + c, load_vector<width>(values + c));
}

// ---- forward

constexpr int forward_rows = 8;  // of a block

template <typename T>
struct Forward {
    float* residual_out;        // (M, C) or null
    T* y;                       // (M, C)
    float* rstd;                // (M)
    const float* residual_in;   // (M, C)
    const T* branch;            // (M, C) or null
    const float* column_scale;  // (C) or null
    const float* weight;        // (C)
    float epsilon;
    int64_t rows;
    int columns;
};

// The first pass over a row: r, written where the next layer and the second pass want it; returns this
// thread's part of the sum of its squares.
template <bool cached, int width, typename T>
CU_DEVICE float add_branch(const Forward<T>& p, const float* column_scale, float* kept, int64_t row_offset) {
    float squares = 0;
    for (int c = static_cast<int>(threadIdx.x) * width; c < p.columns;
         c += static_cast<int>(blockDim.x) * width) {
        Vector<float, width> r = load_vector<width>(p.residual_in + row_offset + c);
        if (p.branch != nullptr) {
            const Vector<T, width> b = load_vector<width>(p.branch + row_offset + c);
            Vector<float, width> scale;
            if (column_scale != nullptr) scale = read_kept<cached, width>(column_scale + c);
            CU_UNROLL
            for (int j = 0; j < width; ++j)
                r[j] +=
                    column_scale != nullptr ? scale[j] * static_cast<float>(b[j]) : static_cast<float>(b[j]);
            store_vector<width>(p.residual_out + row_offset + c, r);
        }
        if constexpr (cached) store_shared_vector<width>(kept + c, r);
        CU_UNROLL
        for (int j = 0; j < width; ++j) squares += r[j] * r[j];
    }
    return squares;
}

// When cached, shared memory holds the row, weight and, if there is one, column_scale, C numbers each.
template <typename T, int width, bool cached>
__global__ void __launch_bounds__(most_threads) normalize_rows(Forward<T> p) {
    CU_SHARED(scratch, float[most_threads / 32]);
    CU_DYN_SHARED(float, kept);
    const float *weight = p.weight, *column_scale = p.column_scale;
    if constexpr (cached) {
        weight = kept + p.columns;
        keep_columns<width>(kept + p.columns, p.weight, p.columns);
        if (p.column_scale != nullptr) {
            column_scale = kept + 2 * p.columns;
            keep_columns<width>(kept + 2 * p.columns, p.column_scale, p.columns);
        }
    }
    const int64_t tile = int64_t{blockIdx.x} * forward_rows;
    for (int64_t m = tile; m < p.rows && m < tile + forward_rows; ++m) {
        const int64_t row_offset = m * p.columns;
        const float part = add_branch<cached, width>(p, column_scale, kept, row_offset);
        const float squares = sum_over_block(part, scratch);
        const float rstd = 1.0f / sqrtf(squares / static_cast<float>(p.columns) + p.epsilon);
        if (threadIdx.x == 0) store(p.rstd + m, rstd);
        const float* row = kept;
        if constexpr (!cached) row = (p.branch != nullptr ? p.residual_out : p.residual_in) + row_offset;
        for (int c = static_cast<int>(threadIdx.x) * width; c < p.columns;
             c += static_cast<int>(blockDim.x) * width) {
            const Vector<float, width> r = read_kept<cached, width>(row + c);
            const Vector<float, width> w = read_kept<cached, width>(weight + c);
            Vector<T, width> y;
            CU_UNROLL
            for (int j = 0; j < width; ++j) y[j] = static_cast<T>(r[j] * rstd * w[j]);
            store_vector<width>(p.y + row_offset + c, y);
        }
    }
}

// ---- backward

template <typename T>
struct Backward {
    float* d_residual;          // (M, C)
    float* partial;             // (tiles, C): the tiles' parts of dweight
    T* dz;                      // (M, C) or null
    const T* dy;                // (M, C)
    const float* residual;      // (M, C)
    const float* rstd;          // (M)
    const float* weight;        // (C)
    const float* column_scale;  // (C) or null
    bool accumulate;            // d_residual
    int64_t rows;
    int columns;
    int tile_rows;
};

// What a block keeps, (C) each: in shared memory, or else where it is in global memory. The last three are
// the present row's and only there when cached.
template <typename T>
struct Kept {
    float* partial;
    const float* weight;
    const float* column_scale;
    float* residual;
    float* d_residual;  // before the addition
    T* dy;
};
constexpr int kept_floats = 5;

// The first pass over a row: adds dy ∘ n to the partial sum, puts aside what the second pass needs - also
// d_residual, so that it is under way early - and returns this thread's part of the sum of h ∘ n.
template <bool cached, int width, typename T>
CU_DEVICE float gradient_dot(const Backward<T>& p, const Kept<T>& kept, int64_t row_offset, float rstd) {
    float dot = 0;
    for (int c = static_cast<int>(threadIdx.x) * width; c < p.columns;
         c += static_cast<int>(blockDim.x) * width) {
        const Vector<T, width> g = load_vector<width>(p.dy + row_offset + c);
        const Vector<float, width> r = load_vector<width>(p.residual + row_offset + c);
        if constexpr (cached) {
            if (p.accumulate)
                store_shared_vector<width>(kept.d_residual + c,
                                           load_vector<width>(p.d_residual + row_offset + c));
            store_shared_vector<width>(kept.dy + c, g);
            store_shared_vector<width>(kept.residual + c, r);
        }
        const Vector<float, width> w = read_kept<cached, width>(kept.weight + c);
        Vector<float, width> sum = read_kept<cached, width>(kept.partial + c);
        CU_UNROLL
        for (int j = 0; j < width; ++j) {
            const float product = static_cast<float>(g[j]) * (r[j] * rstd);
            sum[j] += product;
            dot += product * w[j];
        }
        keep<cached>(kept.partial + c, sum);
    }
    return dot;
}

// The second pass. mean: of h ∘ n.
template <bool cached, int width, typename T>
CU_DEVICE void write_gradient(const Backward<T>& p, const Kept<T>& kept, int64_t row_offset, float rstd,
                              float mean) {
    const float shrink = rstd * rstd * mean;
    const float* before = cached ? kept.d_residual : p.d_residual + row_offset;
    const float* residual = cached ? kept.residual : p.residual + row_offset;
    const T* dy = cached ? kept.dy : p.dy + row_offset;
    for (int c = static_cast<int>(threadIdx.x) * width; c < p.columns;
         c += static_cast<int>(blockDim.x) * width) {
        Vector<float, width> sum = {};
        if (p.accumulate) sum = read_kept<cached, width>(before + c);
        const Vector<T, width> g = read_kept<cached, width>(dy + c);
        const Vector<float, width> r = read_kept<cached, width>(residual + c);
        const Vector<float, width> w = read_kept<cached, width>(kept.weight + c);
        CU_UNROLL
        for (int j = 0; j < width; ++j) sum[j] += rstd * (static_cast<float>(g[j]) * w[j]) - shrink * r[j];
        store_vector<width>(p.d_residual + row_offset + c, sum);
        if (p.dz == nullptr) continue;
        Vector<T, width> dz;
        if (kept.column_scale != nullptr) {
            const Vector<float, width> scale = read_kept<cached, width>(kept.column_scale + c);
            CU_UNROLL
            for (int j = 0; j < width; ++j) sum[j] *= scale[j];
        }
        CU_UNROLL
        for (int j = 0; j < width; ++j) dz[j] = static_cast<T>(sum[j]);
        store_vector<width>(p.dz + row_offset + c, dz);
    }
}

// Two blocks on a multiprocessor: without that demand the compiler saves registers until it spills them.
template <typename T, int width, bool cached>
__global__ void __launch_bounds__(most_threads, 2) gradient_rows(Backward<T> p) {
    CU_SHARED(scratch, float[most_threads / 32]);
    CU_DYN_SHARED(float, shared);  // when cached: kept_floats * C numbers and dy's C
    const int columns = p.columns, step = static_cast<int>(blockDim.x) * width;
    const int first_column = static_cast<int>(threadIdx.x) * width;
    float* tile_partial = p.partial + int64_t{blockIdx.x} * columns;
    Kept<T> kept{tile_partial, p.weight, p.column_scale, nullptr, nullptr, nullptr};
    if constexpr (cached) {
        keep_columns<width>(shared + columns, p.weight, columns);
        if (p.column_scale != nullptr) {
            keep_columns<width>(shared + 2 * columns, p.column_scale, columns);
            kept.column_scale = shared + 2 * columns;
        }
        kept.partial = shared;
        kept.weight = shared + columns;
        kept.residual = shared + 3 * columns;
        kept.d_residual = shared + 4 * columns;
        kept.dy = reinterpret_cast<T*>(shared + kept_floats * columns);
    }
    for (int c = first_column; c < columns; c += step) keep<cached>(kept.partial + c, Vector<float, width>{});

    const int64_t tile = int64_t{blockIdx.x} * p.tile_rows;
    for (int64_t m = tile; m < p.rows && m < tile + p.tile_rows; ++m) {
        const float rstd = load(p.rstd + m);
        const float dot = gradient_dot<cached, width>(p, kept, m * columns, rstd);
        const float mean = sum_over_block(dot, scratch) / static_cast<float>(columns);
        write_gradient<cached, width>(p, kept, m * columns, rstd, mean);
    }
    if constexpr (cached)
        for (int c = first_column; c < columns; c += step)
            store_vector<width>(tile_partial + c, load_shared_vector<width>(shared + c));
}

// ---- launches

// Calls launch.template operator()<width, cached>(threads, shared bytes); `shared_bytes`: what caching takes.
template <typename Launch>
void with_layout(bool aligned, int64_t columns, int64_t shared_bytes, const DeviceProperties& properties,
                 Launch&& launch) {
    constexpr int64_t reserve = 1024;  // for the kernels' own shared memory
    with_width<vector_width>(aligned, [&]<int width>() {
        const unsigned threads = balanced_threads((columns + width - 1) / width, most_threads);
        if (shared_bytes + reserve <= properties.shared_memory_per_block)
            launch.template operator()<width, true>(threads, static_cast<unsigned>(shared_bytes));
        else
            launch.template operator()<width, false>(threads, 0u);
    });
}

}  // namespace

void residual_rmsnorm_forward(Device& device, const ResidualRmsnormForward& a) {
    const int64_t rows = a.y.shape[0], columns = a.y.shape[1];
    with_compute_type(a.name, a.y.dtype, [&]<typename T>() {
        const Forward<T> p{a.residual_out.as<float>(), a.y.as<T>(),      a.rstd.as<float>(),
                           a.residual_in.as<float>(),  a.branch.as<T>(), a.column_scale.as<float>(),
                           a.weight.as<float>(),       a.epsilon,        rows,
                           static_cast<int>(columns)};
        const bool aligned = rows_aligned<vector_width>(columns, p.residual_out, p.y, p.residual_in, p.branch,
                                                        p.column_scale, p.weight);
        const int64_t column_bytes = (p.column_scale != nullptr ? 3 : 2) * sizeof(float);
        with_layout(aligned, columns, columns * column_bytes, device.properties(),
                    [&]<int width, bool cached>(unsigned threads, unsigned shared_bytes) {
                        CU_LAUNCH((normalize_rows<T, width, cached>), blocks_for(rows, forward_rows), threads,
                                  shared_bytes, device.stream(), p);
                    });
    });
}

int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) {
    return partial_sum_bytes(rows, columns);
}

void rmsnorm_backward(Device& device, const RmsnormBackward& a) {
    const int64_t rows = a.dy.shape[0], columns = a.dy.shape[1];
    const int64_t tile_rows = summed_rows(rows), tiles = blocks_for(rows, tile_rows);
    float* partials = static_cast<float*>(a.workspace);
    with_compute_type(a.name, a.dy.dtype, [&]<typename T>() {
        const Backward<T> p{a.d_residual.as<float>(),
                            partials,
                            a.dz.as<T>(),
                            a.dy.as<T>(),
                            a.residual.as<float>(),
                            a.rstd.as<float>(),
                            a.weight.as<float>(),
                            a.column_scale.as<float>(),
                            a.accumulate_residual,
                            rows,
                            static_cast<int>(columns),
                            static_cast<int>(tile_rows)};
        const bool aligned = rows_aligned<vector_width>(columns, p.d_residual, p.partial, p.dz, p.dy,
                                                        p.residual, p.weight, p.column_scale);
        const int64_t column_bytes = kept_floats * sizeof(float) + sizeof(T);
        with_layout(aligned, columns, columns * column_bytes, device.properties(),
                    [&]<int width, bool cached>(unsigned threads, unsigned shared_bytes) {
                        CU_LAUNCH((gradient_rows<T, width, cached>), static_cast<unsigned>(tiles), threads,
                                  shared_bytes, device.stream(), p);
                    });
    });
    sum_partials(device, a.dweight.as<float>(), partials, tiles, columns, a.accumulate_weight);
}

}  // namespace train_qat::CU_BACKEND
