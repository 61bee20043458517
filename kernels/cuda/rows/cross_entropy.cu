// Softmax cross entropy and its gradient for a chunk of rows, straight from the logits. With l = column_scale ∘ logits,
// one block a row:
//     largest     = max_v l[v]
//     sum         = sum_v e^(l[v] - largest)
//     loss        = log(sum) + (largest - l[target])
//     d_logits[v] = column_scale[v] * (e^(l[v] - largest) / sum - [v = target]) * gradient_factor
//
// Floor: the logits read once, d_logits written once. The first pass finds maximum and sum together, each thread over
// its own columns. The second pass finds the logits in shared memory; rows that do not fit there (more than 57,000
// numbers on an H100) are read again, out of the L2 cache for the most part. column_scale is read twice a row, but from
// caches: all rows share it.
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

constexpr int most_threads = 1024;
constexpr int vectors_per_thread = 4;  // whose loads go out together

// l = scale * logit, rounded once: the zero keeps the product out of wider fused operations.
template <int width>
CU_DEVICE void scale_logits(Vector<float, width>& logits, const float* column_scale) {
    if (column_scale == nullptr) return;
    const Vector<float, width> scale = load_vector<width>(column_scale);
    CU_UNROLL
    for (int j = 0; j < width; ++j) logits[j] = fmaf(scale[j], logits[j], 0.0f);
}

// What exponents are relative to. Where all logits so far are -infinity, they shall count as e^-infinity = 0
// and not as the NaN that a difference of infinities is. +infinity does become NaN.
CU_DEVICE float shift_of(float largest) {
    return largest == -HUGE_VALF ? 0.0f : largest;
}

// The online softmax: a new maximum shrinks the sum so far. NaN is never the maximum, but enters the sum.
template <int width>
CU_DEVICE void include(float& largest, float& sum, const Vector<float, width>& logits) {
    float highest = largest;
    CU_UNROLL
    for (int j = 0; j < width; ++j) highest = logits[j] > highest ? logits[j] : highest;
    const float shrink = highest > largest ? expf(largest - highest) : 1.0f;
    largest = highest;
    sum = fmaf(sum, shrink, expf(logits[0] - shift_of(largest)));
    CU_UNROLL
    for (int j = 1; j < width; ++j) sum += expf(logits[j] - shift_of(largest));
}

// One pass over the row's logits; `kept`: shared memory for them, or null.
template <int width>
CU_DEVICE void softmax_pass(float& largest, float& sum, float* kept, const float* logits,
                            const float* column_scale, int columns) {
    const int step = static_cast<int>(blockDim.x) * width;
    for (int first = static_cast<int>(threadIdx.x) * width; first < columns;
         first += vectors_per_thread * step) {
        Vector<float, width> l[vectors_per_thread];
        CU_UNROLL
        for (int i = 0; i < vectors_per_thread; ++i)
            if (first + i * step < columns) l[i] = load_vector<width>(logits + first + i * step);
        CU_UNROLL
        for (int i = 0; i < vectors_per_thread; ++i) {
            const int column = first + i * step;
            if (column >= columns) return;
            scale_logits(l[i], column_scale != nullptr ? column_scale + column : nullptr);
            if (kept != nullptr) store_shared_vector<width>(kept + column, l[i]);
            include(largest, sum, l[i]);
        }
    }
}

template <int width, typename T>
CU_DEVICE void gradient_pass(T* d_logits, const float* kept, const float* logits, const float* column_scale,
                             float largest, float sum, int target, float factor, int columns,
                             bool vector_stores) {
    const float share = 1.0f / sum;
    // A thread reads the numbers that it has kept itself: no barrier.
    for (int column = static_cast<int>(threadIdx.x) * width; column < columns;
         column += static_cast<int>(blockDim.x) * width) {
        const float* scale = column_scale != nullptr ? column_scale + column : nullptr;
        Vector<float, width> l;
        if (kept != nullptr) {
            l = load_shared_vector<width>(kept + column);
        } else {
            l = load_vector<width>(logits + column);
            scale_logits(l, scale);
        }
        Vector<float, width> scales;
        if (scale != nullptr) scales = load_vector<width>(scale);
        Vector<T, width> gradient;
        CU_UNROLL
        for (int j = 0; j < width; ++j) {
            const float probability = expf(l[j] - largest) * share;
            const float g = (column + j == target ? probability - 1.0f : probability) * factor;
            gradient[j] = static_cast<T>(scale != nullptr ? g * scales[j] : g);
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

template <int width>
__global__ void __launch_bounds__(most_threads)
    cross_entropy_rows(float* losses, const float* logits, const int32_t* targets, const float* column_scale,
                       int columns, Gradient gradient) {
    CU_SHARED(scratch, float[most_threads / 32]);
    CU_DYN_SHARED(float, row);
    float* kept = gradient.keep ? row : nullptr;
    const int64_t m = blockIdx.x;
    logits += m * columns;
    float own_largest = -HUGE_VALF, own_sum = 0;
    softmax_pass<width>(own_largest, own_sum, kept, logits, column_scale, columns);
    const float largest = max_over_block(own_largest, scratch);
    const float sum = sum_over_block(fmaf(own_sum, expf(own_largest - shift_of(largest)), 0.0f), scratch);
    const int target = load(targets + m);
    if (threadIdx.x == 0) {
        Vector<float, 1> at_target = load_vector<1>(logits + target);
        scale_logits(at_target, column_scale != nullptr ? column_scale + target : nullptr);
        store(losses + m, logf(sum) + (largest - at_target[0]));
    }
    if (gradient.d_logits == nullptr) return;
    if (gradient.dtype == DType::bfloat16)
        gradient_pass<width>(static_cast<bfloat16*>(gradient.d_logits) + m * columns, kept, logits,
                             column_scale, largest, sum, target, gradient.factor, columns,
                             gradient.vector_stores);
    else
        gradient_pass<width>(static_cast<float*>(gradient.d_logits) + m * columns, kept, logits, column_scale,
                             largest, sum, target, gradient.factor, columns, gradient.vector_stores);
}

}  // namespace

void cross_entropy(Device& device, const CrossEntropy& a) {
    const int64_t rows = a.logits.shape[0], vocabulary = a.logits.shape[1];
    const int64_t row_bytes = vocabulary * static_cast<int64_t>(sizeof(float));
    constexpr int64_t reserve = 1024;  // for the kernel's own shared memory
    const bool keep =
        !a.d_logits.empty() && row_bytes + reserve <= device.properties().shared_memory_per_block;
    // The width decides the order of the sum, so it must not depend on d_logits.
    const bool aligned = rows_aligned<4>(vocabulary, a.logits.as<float>(), a.column_scale.as<float>());
    with_width<4>(aligned, [&]<int width>() {
        Gradient gradient{a.d_logits.data, a.d_logits.dtype, a.gradient_factor, keep, false};
        with_compute_type(a.name, a.d_logits.dtype, [&]<typename T>() {
            gradient.vector_stores = vector_aligned<width>(a.d_logits.as<T>());
        });
        const int64_t vectors = (vocabulary + width - 1) / width;
        const int64_t busy_threads = (vectors + vectors_per_thread - 1) / vectors_per_thread;
        const unsigned threads =
            balanced_threads(std::min<int64_t>(busy_threads, most_threads), most_threads);
        CU_LAUNCH(cross_entropy_rows<width>, static_cast<unsigned>(rows), threads,
                  static_cast<unsigned>(keep ? row_bytes : 0), device.stream(), a.losses.as<float>(),
                  a.logits.as<float>(), a.targets.as<int32_t>(), a.column_scale.as<float>(),
                  static_cast<int>(vocabulary), gradient);
    });
}

}  // namespace train_qat::CU_BACKEND
