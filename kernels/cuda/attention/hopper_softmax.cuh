// The softmax of a warpgroup's scores, kept in the registers in which wgmma leaves them (hopper_wgmma.cuh): a lane has parts
// of two rows, g = lane / 4 (half 0) and g + 8 (half 1) of its warp's 16, in sum[4j ... 4j + 3] columns 8j + 2t and 8j + 2t + 1
// of the first row, then of the second, t = lane % 4. What m, l and o are: attention_forward.cu.
#pragma once

#include <cmath>

#include "kernels/cuda/attention/attention_tiles.cuh"

namespace train_qat::CU_BACKEND::attention {

// Weights may become as large as 2^headroom before the reference value follows.
constexpr float hopper_headroom = 8.0f;

// Which of the lane's two rows register i of a product belongs to.
CU_DEVICE constexpr int half_of(int i) {
    return i / 2 % 2;
}
// The row, of the warpgroup's 64.
CU_DEVICE int warpgroup_row(int half) {
    return warp_index() % 4 * 16 + 8 * half + lane_index() / 4;
}
CU_DEVICE int warpgroup_column(int i) {
    return i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
}

struct RowState {
    float maximum[2];  // m
    float sum[2];      // l, this lane's part
    CU_DEVICE void clear() {
        for (int half = 0; half < 2; ++half) {
            maximum[half] = -1e38f;  // finite: -infinity minus itself is not a number
            sum[half] = 0.0f;
        }
    }
};

// Puts -infinity where the key is later than the query. rows_ahead: position of the warpgroup's first row minus that of the
// first key.
template <int count>
CU_DEVICE void hide_later_keys(float (&scores)[count], int rows_ahead) {
    CU_UNROLL
    for (int i = 0; i < count; ++i)
        if (warpgroup_column(i) > rows_ahead + warpgroup_row(half_of(i))) scores[i] = -INFINITY;
}

// The same where rows are keys and columns queries. keys_ahead: position of the warpgroup's first row minus that of the first query.
template <int count>
CU_DEVICE void hide_earlier_queries(float (&scores)[count], int keys_ahead) {
    CU_UNROLL
    for (int i = 0; i < count; ++i)
        if (warpgroup_column(i) < keys_ahead + warpgroup_row(half_of(i))) scores[i] = -INFINITY;
}

// Moves the reference values where `scores`, times `scale` exponents of two, ask for it. Whether a row of the warp did: then
// what was summed before must be multiplied by `factor`; state.sum has been.
template <int count>
CU_DEVICE bool raise_maximum(RowState& state, float (&factor)[2], const float (&scores)[count], float scale) {
    float largest[2] = {scores[0], scores[2]};
    CU_UNROLL
    for (int i = 0; i < count; i += 2)
        largest[half_of(i)] = fmaxf(largest[half_of(i)], fmaxf(scores[i], scores[i + 1]));
    bool any = false;
    CU_UNROLL
    for (int half = 0; half < 2; ++half) {
        const float candidate = row_max(largest[half]) * scale;
        float& maximum = state.maximum[half];
        const bool raise = candidate > maximum + hopper_headroom;
        factor[half] = raise ? flushed_exp2(maximum - candidate) : 1.0f;
        maximum = raise ? candidate : maximum;
        state.sum[half] *= factor[half];
        any = any || raise;
    }
    return ballot(any) != 0;
}

// scores become weights. exponential(x, i): 2^x for register i.
template <int count, typename Exponential>
CU_DEVICE void make_weights(RowState& state, float (&scores)[count], float scale, Exponential&& exponential) {
    CU_UNROLL
    for (int i = 0; i < count; ++i) {
        scores[i] = exponential(scores[i] * scale - state.maximum[half_of(i)], i);
        state.sum[half_of(i)] += scores[i];
    }
}

// The weights as wgmma's left operand, 16 keys at a time.
template <int steps, int count>
CU_DEVICE void pack_weights(uint32_t (&operand)[steps][4], const float (&weights)[count]) {
    static_assert(count == 8 * steps);
    CU_UNROLL
    for (int k = 0; k < steps; ++k) {
        CU_UNROLL
        for (int i = 0; i < 4; ++i)
            operand[k][i] = pack_bfloat16(weights[8 * k + 2 * i], weights[8 * k + 2 * i + 1]);
    }
}

// Multiplies both rows of a product.
template <int count>
CU_DEVICE void scale_rows(float (&out)[count], const float (&factor)[2]) {
    CU_UNROLL
    for (int i = 0; i < count; ++i) out[i] *= factor[half_of(i)];
}

}  // namespace train_qat::CU_BACKEND::attention
