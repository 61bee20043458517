// The last variants of cross_entropy.cu: rows in vectors, exponentials in base 2.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/rows/row_tile.cuh"

namespace train_qat::CU_BACKEND {

constexpr float factor = 1.0f / 1024;

template <typename L>
struct Rows {
    float* losses;              // (M)
    bfloat16* d_logits;         // (M, V), may be logits
    const L* logits;            // (M, V)
    const int32_t* targets;     // (M)
    const float* column_scale;  // (V) or null
    int rows, columns;
};

template <typename L>
CU_DEVICE float logit(const Rows<L>& p, const L* row, int v) {
    const float l = static_cast<float>(load(row + v));
    return p.column_scale != nullptr ? l * load(p.column_scale + v) : l;
}

constexpr float log2_e = 1.44269504088896341f;

// Threads of a block and numbers of an access of 16 bytes, as in cross_entropy.cu.
template <typename L>
constexpr int row_threads = sizeof(L) == 4 ? 1024 : 512;
template <typename L>
constexpr int wide = 16 / sizeof(L);

template <int width>
struct Columns {
    float l[width], scale[width];
};

template <bool scaled, int width, typename L>
CU_DEVICE Columns<width> columns_of(const Vector<L, width>& logits, const float* column_scale) {
    Columns<width> columns;
    if constexpr (scaled) load_scale(columns.scale, column_scale);
    CU_UNROLL
    for (int j = 0; j < width; ++j) {
        columns.l[j] = static_cast<float>(logits[j]);
        if constexpr (scaled) columns.l[j] *= columns.scale[j];
    }
    return columns;
}

struct Softmax {
    float largest = -HUGE_VALF;
    float sum = 0;  // of 2^((l - largest) log2 e)
};

CU_DEVICE float shift_of(float largest) {
    return largest == -HUGE_VALF ? 0.0f : largest * log2_e;
}

template <int width>
CU_DEVICE void include(Softmax& row, const float (&l)[width]) {
    float highest = row.largest;
    CU_UNROLL
    for (int j = 0; j < width; ++j) highest = fmaxf(highest, l[j]);
    if (highest > row.largest) row.sum *= flushed_exp2((row.largest - highest) * log2_e);
    row.largest = highest;
    const float shift = shift_of(highest);
    CU_UNROLL
    for (int j = 0; j < width; ++j) row.sum += flushed_exp2(fmaf(l[j], log2_e, -shift));
}

CU_DEVICE Softmax over_block(const Softmax& own, float* scratch) {
    Softmax row;
    row.largest = max_over_block(own.largest, scratch);
    row.sum = sum_over_block(own.sum * flushed_exp2(own.largest * log2_e - shift_of(row.largest)), scratch);
    return row;
}

CU_DEVICE float loss_of(const Softmax& row, float at_target) {
    return logf(row.sum) + (row.largest - at_target);
}

// exponent: log2(factor / sum) - largest log2 e.
CU_DEVICE float exponent_of(const Softmax& row) {
    return log2f(factor) - log2f(row.sum) - row.largest * log2_e;
}

template <bool scaled, int width>
CU_DEVICE Vector<bfloat16, width> gradient_of(const Columns<width>& of, int column, int target,
                                              float exponent) {
    float g[width];
    CU_UNROLL
    for (int j = 0; j < width; ++j) g[j] = flushed_exp2(fmaf(of.l[j], log2_e, exponent));
    if (target >= column && target < column + width) {
        CU_UNROLL
        for (int j = 0; j < width; ++j)
            if (column + j == target) g[j] -= factor;
    }
    Vector<bfloat16, width> result;
    CU_UNROLL
    for (int j = 0; j < width; ++j) result[j] = static_cast<bfloat16>(scaled ? g[j] * of.scale[j] : g[j]);
    return result;
}

template <typename L, int width, bool scaled, bool keep>
__global__ void __launch_bounds__(row_threads<L>) base_two(Rows<L> p) {
    CU_SHARED(scratch, float[row_threads<L> / 32]);
    CU_DYN_SHARED(L, kept);  // (V), if keep
    constexpr int in_flight = 4;
    const int64_t offset = int64_t{blockIdx.x} * p.columns;
    const L* logits = p.logits + offset;
    const int begin = static_cast<int>(threadIdx.x) * width, step = static_cast<int>(blockDim.x) * width;
    Softmax own;
    for (int first = begin; first < p.columns; first += in_flight * step) {
        Vector<L, width> loaded[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i)
            if (first + i * step < p.columns) loaded[i] = load_vector<width>(logits + first + i * step);
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int column = first + i * step;
            if (column >= p.columns) continue;
            if constexpr (keep) store_shared_vector<width>(kept + column, loaded[i]);
            include(own, columns_of<scaled>(loaded[i], p.column_scale + column).l);
        }
    }
    const int target = load(p.targets + blockIdx.x);
    const float at_target = logit(p, logits, target);
    const Softmax row = over_block(own, scratch);
    if (threadIdx.x == 0) store(p.losses + blockIdx.x, loss_of(row, at_target));
    const float exponent = exponent_of(row);
    for (int c = begin; c < p.columns; c += step) {
        Vector<L, width> l;
        if constexpr (keep)
            l = load_shared_vector<width>(kept + c);
        else
            l = load_vector<width>(logits + c);
        const Columns<width> of = columns_of<scaled>(l, p.column_scale + c);
        store_vector<width>(p.d_logits + offset + c, gradient_of<scaled>(of, c, target, exponent));
    }
}

// A thread's numbers of a row come in `groups` groups of copies: it computes with one while others are under way.
constexpr int groups = 4;

template <typename L, bool scaled>
__global__ void __launch_bounds__(row_threads<L>, 4 / sizeof(L)) next_row_under_way(Rows<L> p) {
    CU_SHARED(scratch, float[row_threads<L> / 32]);
    CU_DYN_SHARED(L, kept);  // (V): a thread's own numbers alone, but for the target
    constexpr int width = wide<L>, step = row_threads<L> * width;
    const int begin = static_cast<int>(threadIdx.x) * width;
    const int group_columns = (p.columns + groups * step - 1) / (groups * step) * step;
    // Calls visit(column) for the thread's columns of a group.
    const auto each_column = [&](int group, auto&& visit) {
        const int first = group * group_columns;
        const int last = first + group_columns < p.columns ? first + group_columns : p.columns;
        for (int c = first + begin; c < last; c += step) visit(c);
    };
    CU_UNROLL
    for (int group = 0; group < groups; ++group) {
        each_column(group,
                    [&](int c) { cp_async_16(kept + c, p.logits + int64_t{blockIdx.x} * p.columns + c); });
        cp_async_commit();
    }
    for (int64_t m = blockIdx.x; m < p.rows; m += gridDim.x) {
        Softmax own;
        const auto include_group = [&](int group) {
            each_column(group, [&](int c) {
                include(own, columns_of<scaled>(load_shared_vector<width>(kept + c), p.column_scale + c).l);
            });
        };
        cp_async_wait<3>();
        include_group(0);
        cp_async_wait<2>();
        include_group(1);
        cp_async_wait<1>();
        include_group(2);
        cp_async_wait<0>();
        include_group(3);
        const int target = load(p.targets + m);
        const float at_target = logit(p, p.logits + m * p.columns, target);
        const Softmax row = over_block(own, scratch);
        if (threadIdx.x == 0) store(p.losses + m, loss_of(row, at_target));
        const float exponent = exponent_of(row);
        const int64_t next = m + gridDim.x;
        CU_UNROLL
        for (int group = 0; group < groups; ++group) {
            each_column(group, [&](int c) {
                const Columns<width> of =
                    columns_of<scaled>(load_shared_vector<width>(kept + c), p.column_scale + c);
                store_vector<width>(p.d_logits + m * p.columns + c,
                                    gradient_of<scaled>(of, c, target, exponent));
                // The number has been used: its place is free.
                if (next < p.rows) cp_async_16(kept + c, p.logits + next * p.columns + c);
            });
            cp_async_commit();
        }
    }
}

}  // namespace train_qat::CU_BACKEND
