// Softmax cross entropy and its gradient for a chunk of rows, straight from the logits. With l = column_scale ∘ logits,
// one block a row:
//     largest     = max_v l[v]
//     sum         = sum_v e^(l[v] - largest)
//     loss        = log(sum) + (largest - l[target])
//     d_logits[v] = column_scale[v] * (e^(l[v] - largest) / sum - [v = target]) * gradient_factor
//
// Floor: the logits read once, d_logits written once: 6 bytes a number with float32 logits and a bfloat16 gradient, 4
// with both in bfloat16. The first pass finds maximum and sum together, each thread over its own columns. The second
// pass finds the logits in shared memory; rows that do not fit there (on an H100 more than 57,000 float32 numbers, twice
// as many in bfloat16) are read again, out of the L2 cache for the most part. column_scale is read twice a row, but from
// caches: all rows share it. A row of bfloat16 takes half the shared memory, so blocks of half the threads: where two
// fit on a multiprocessor, one has loads under way while the other waits at a barrier.
//
// d_logits may lie in the logits' memory: a thread reads its own columns alone before it writes them, and the target's
// logit is read before the block's first barrier.
//
// The losses are the same bits with and without a gradient and for all its types: one kernel computes them all, and
// where compilers could fuse a product and a sum into one rounding or leave it, the code says which.
#include <algorithm>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

// Threads of a block, at most; logits of type L in one access of 16 bytes.
template <typename L>
constexpr int most_threads = sizeof(L) == 4 ? 1024 : 512;
template <typename L>
constexpr int wide = 16 / sizeof(L);
constexpr int vectors_per_thread = 4;  // whose loads go out together

// The logits of neighbouring columns and their scales, where there are any.
template <int width>
struct Columns {
    float l[width], scale[width];
};

// l = scale * logit, rounded once: the zero keeps the product out of wider fused operations. column_scale: of these
// columns, or null.
template <int width, typename L>
CU_DEVICE Columns<width> scaled_logits(const Vector<L, width>& logits, const float* column_scale) {
    Columns<width> columns;
    if (column_scale != nullptr) load_scale(columns.scale, column_scale);
    CU_UNROLL
    for (int j = 0; j < width; ++j) {
        const float logit = static_cast<float>(logits[j]);
        columns.l[j] = column_scale != nullptr ? fmaf(columns.scale[j], logit, 0.0f) : logit;
    }
    return columns;
}

// What exponents are relative to. Where all logits so far are -infinity, they shall count as e^-infinity = 0
// and not as the NaN that a difference of infinities is. +infinity does become NaN.
CU_DEVICE float shift_of(float largest) {
    return largest == -HUGE_VALF ? 0.0f : largest;
}

// The online softmax: a new maximum shrinks the sum so far. NaN is never the maximum, but enters the sum.
template <int width>
CU_DEVICE void include(float& largest, float& sum, const float (&l)[width]) {
    float highest = largest;
    CU_UNROLL
    for (int j = 0; j < width; ++j) highest = l[j] > highest ? l[j] : highest;
    const float shrink = highest > largest ? expf(largest - highest) : 1.0f;
    largest = highest;
    sum = fmaf(sum, shrink, expf(l[0] - shift_of(largest)));
    CU_UNROLL
    for (int j = 1; j < width; ++j) sum += expf(l[j] - shift_of(largest));
}

// One pass over the row's logits; `kept`: shared memory for them, or null.
template <int width, typename L>
CU_DEVICE void softmax_pass(float& largest, float& sum, L* kept, const L* logits, const float* column_scale,
                            int columns) {
    const int step = static_cast<int>(blockDim.x) * width;
    for (int first = static_cast<int>(threadIdx.x) * width; first < columns;
         first += vectors_per_thread * step) {
        Vector<L, width> loaded[vectors_per_thread];
        CU_UNROLL
        for (int i = 0; i < vectors_per_thread; ++i)
            if (first + i * step < columns) loaded[i] = load_vector<width>(logits + first + i * step);
        CU_UNROLL
        for (int i = 0; i < vectors_per_thread; ++i) {
            const int column = first + i * step;
            if (column >= columns) return;
            if (kept != nullptr) store_shared_vector<width>(kept + column, loaded[i]);
            include(largest, sum,
                    scaled_logits(loaded[i], column_scale != nullptr ? column_scale + column : nullptr).l);
        }
    }
}

template <int width, typename T, typename L>
CU_DEVICE void gradient_pass(T* d_logits, const L* kept, const L* logits, const float* column_scale,
                             float largest, float sum, int target, float factor, int columns,
                             bool vector_stores) {
    const float share = 1.0f / sum;
    // A thread reads the numbers that it has kept itself: no barrier.
    for (int column = static_cast<int>(threadIdx.x) * width; column < columns;
         column += static_cast<int>(blockDim.x) * width) {
        const float* scale = column_scale != nullptr ? column_scale + column : nullptr;
        const Columns<width> of = scaled_logits(
            kept != nullptr ? load_shared_vector<width>(kept + column) : load_vector<width>(logits + column),
            scale);
        Vector<T, width> gradient;
        CU_UNROLL
        for (int j = 0; j < width; ++j) {
            const float probability = expf(of.l[j] - largest) * share;
            const float g = (column + j == target ? probability - 1.0f : probability) * factor;
            gradient[j] = static_cast<T>(scale != nullptr ? g * of.scale[j] : g);
        }
        if (vector_stores) {
            store_vector<width>(d_logits + column, gradient);
        } else {
            CU_UNROLL
            for (int j = 0; j < width; ++j) store(d_logits + column + j, gradient[j]);
        }
    }
}

struct Gradient {
    void* d_logits;  // (M, V), or null: not wanted
    DType dtype;     // of d_logits
    float factor;
    bool keep;           // the launch gives shared memory for the row
    bool vector_stores;  // d_logits is aligned
};

template <int width, typename L>
__global__ void __launch_bounds__(most_threads<L>)
    cross_entropy_rows(float* losses, const L* logits, const int32_t* targets, const float* column_scale,
                       int columns, Gradient gradient) {
    CU_SHARED(scratch, float[most_threads<L> / 32]);
    CU_DYN_SHARED(L, row);
    L* kept = gradient.keep ? row : nullptr;
    const int64_t m = blockIdx.x;
    logits += m * columns;
    float own_largest = -HUGE_VALF, own_sum = 0;
    softmax_pass<width>(own_largest, own_sum, kept, logits, column_scale, columns);
    const int target = load(targets + m);
    float at_target = 0;
    if (threadIdx.x == 0)
        at_target = scaled_logits(load_vector<1>(logits + target),
                                  column_scale != nullptr ? column_scale + target : nullptr)
                        .l[0];
    const float largest = max_over_block(own_largest, scratch);
    const float sum = sum_over_block(fmaf(own_sum, expf(own_largest - shift_of(largest)), 0.0f), scratch);
    if (threadIdx.x == 0) store(losses + m, logf(sum) + (largest - at_target));
    if (gradient.d_logits == nullptr) return;
    const auto write = [&]<typename T>(T* d_logits) {
        gradient_pass<width>(d_logits + m * columns, kept, logits, column_scale, largest, sum, target,
                             gradient.factor, columns, gradient.vector_stores);
    };
    if (gradient.dtype == DType::bfloat16) {
        write(static_cast<bfloat16*>(gradient.d_logits));
    } else if constexpr (sizeof(L) == sizeof(float)) {
        write(static_cast<float*>(gradient.d_logits));
    }
}

template <typename L>
void launch_cross_entropy(Device& device, const CrossEntropy& a) {
    const int64_t rows = a.logits.shape[0], vocabulary = a.logits.shape[1];
    const int64_t row_bytes = vocabulary * static_cast<int64_t>(sizeof(L));
    constexpr int64_t reserve = 1024;  // for the kernel's own shared memory
    const bool keep =
        !a.d_logits.empty() && row_bytes + reserve <= device.properties().shared_memory_per_block;
    // The width decides the order of the sum, so it must not depend on d_logits.
    const bool aligned =
        rows_aligned<wide<L>>(vocabulary, a.logits.as<L>()) && vector_aligned<4>(a.column_scale.as<float>());
    with_width<wide<L>>(aligned, [&]<int width>() {
        Gradient gradient{a.d_logits.data, a.d_logits.dtype, a.gradient_factor, keep, false};
        with_compute_type(a.name, a.d_logits.dtype, [&]<typename T>() {
            gradient.vector_stores = vector_aligned<width>(a.d_logits.as<T>());
        });
        const int64_t vectors = (vocabulary + width - 1) / width;
        const int64_t busy_threads = (vectors + vectors_per_thread - 1) / vectors_per_thread;
        const unsigned threads =
            balanced_threads(std::min<int64_t>(busy_threads, most_threads<L>), most_threads<L>);
        CU_LAUNCH((cross_entropy_rows<width, L>), static_cast<unsigned>(rows), threads,
                  static_cast<unsigned>(keep ? row_bytes : 0), device.stream(), a.losses.as<float>(),
                  a.logits.as<L>(), a.targets.as<int32_t>(), a.column_scale.as<float>(),
                  static_cast<int>(vocabulary), gradient);
    });
}

}  // namespace

void cross_entropy(Device& device, const CrossEntropy& a) {
    with_compute_type(a.name, a.logits.dtype, [&]<typename L>() { launch_cross_entropy<L>(device, a); });
}

}  // namespace train_qat::CU_BACKEND
