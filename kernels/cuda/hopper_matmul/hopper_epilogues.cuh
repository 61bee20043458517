// Outputs of a product (hopper_outputs.cuh) that compute on its sums what would else be a pass over memory of its own. A thread's
// sums of a row are columns 8j + 2t + e, so that numbers half a head apart, and gate and up of a tile in two parts, are
// in the same thread.
//
// Floors: RoPE writes its 2 bytes a number once, where the pass would write, read and write them. SwiGLU writes gate, up and
// y, 6 bytes a column of y, where the pass would read gate and up again, 4 bytes. Neither overlaps with the products of
// the same block: RoPE costs 8 instructions a number, and SwiGLU 16 a number of y, with 2 of the special function unit.
#pragma once

#include "kernels/cuda/hopper_matmul/hopper_outputs.cuh"

namespace train_qat::CU_BACKEND {

// A column's scale, or 1. `columns` and `column` are even.
CU_DEVICE Vector<float, 2> load_scale_pair(const float* column_scale, int column, int columns) {
    if (column_scale == nullptr || column >= columns) return {1.0f, 1.0f};
    return load_vector<2>(column_scale + column);
}

// Rotary position embedding (RopeForward) of heads of D numbers, on the sums as they are, before they are rounded: a tile begins
// with a head.
template <int D>
struct RopeOutput {
    static constexpr int right_parts = 1;
    Bfloat16Output qkv;
    const float *cosines, *sines, *column_scale;  // the last may be null
    int columns, turned_columns, sequence;        // turned: queries and keys, the first

    template <int count, typename Parts>
    CU_DEVICE void store(float (&sum)[count], Parts& parts, int row, int column, int split) const {
        if (column_scale != nullptr) {
            CU_UNROLL
            for (int j = 0; j < count / 4; ++j) {
                const Vector<float, 2> scale =
                    load_scale_pair(column_scale, column + 8 * j + lane_index() % 4 * 2, columns);
                CU_UNROLL
                for (int i = 0; i < 4; ++i) sum[4 * j + i] *= scale[i % 2];
            }
        }
        if (column < turned_columns) turn(sum, row + warp_index() % 4 * 16 + lane_index() / 4, column);
        qkv.store(sum, parts, row, column, split);
    }

  private:
    // row: of the thread's first sums; the others are 8 rows on.
    template <int count>
    CU_DEVICE void turn(float (&sum)[count], int row, int column) const {
        constexpr int head_sums = D / 2, pair_distance = D / 4;  // of a thread
        CU_UNROLL
        for (int half = 0; half < 2; ++half) {
            const int64_t table = int64_t{(row + 8 * half) % sequence} * (D / 2) + lane_index() % 4 * 2;
            CU_UNROLL
            for (int j = 0; j < D / 16; ++j) {
                const Vector<float, 2> cosine = load_vector<2>(cosines + table + 8 * j);
                const Vector<float, 2> sine = load_vector<2>(sines + table + 8 * j);
                CU_UNROLL
                for (int head = 0; head < count / head_sums; ++head) {
                    if (column + head * D >= turned_columns) break;
                    float* const first = sum + head * head_sums + 4 * j + 2 * half;
                    float* const second = first + pair_distance;
                    CU_UNROLL
                    for (int e = 0; e < 2; ++e) {
                        const float a = first[e], b = second[e];
                        first[e] = a * cosine[e] - b * sine[e];
                        second[e] = b * cosine[e] + a * sine[e];
                    }
                }
            }
        }
    }
};

// SwiGLU (SwigluForward) of the gate and up that are stored, rounded: what the backward pass reads.
struct SwigluOutput {
    static constexpr int right_parts = 2;
    TensorMap gate, up, y;      // boxes of 64 rows and columns
    const float* column_scale;  // of gate, then of up; or null
    int columns;                // of y

    template <int count, typename Parts>
    CU_DEVICE void store(float (&sum)[count], Parts& parts, int row, int column, int /*split*/) const {
        constexpr int part_sums = 32, up_distance = count / 2;
        CU_UNROLL
        for (int part = 0; part < up_distance / part_sums; ++part) {
            float *const gate_sum = sum + part * part_sums, *const up_sum = gate_sum + up_distance;
            const int first = column + 64 * part;
            const auto send = [&](const float* numbers, const TensorMap& map) {
                write_bfloat16(parts.open(), numbers);
                parts.close([&](const unsigned char* written) { tensor_store(&map, first, row, written); });
            };
            send(gate_sum, gate);
            send(up_sum, up);
            activate(gate_sum, up_sum, first);
            send(gate_sum, y);
        }
    }

  private:
    // y in place of the gate, for 64 columns.
    CU_DEVICE void activate(float* gate_sum, const float* up_sum, int column) const {
        constexpr float log2_e = 1.44269504f;
        CU_UNROLL
        for (int j = 0; j < 8; ++j) {
            const int here = column + 8 * j + lane_index() % 4 * 2;
            const Vector<float, 2> gate_scale = load_scale_pair(column_scale, here, columns);
            const Vector<float, 2> up_scale =
                load_scale_pair(column_scale != nullptr ? column_scale + columns : nullptr, here, columns);
            CU_UNROLL
            for (int i = 0; i < 4; i += 2) {
                float* const place = gate_sum + 4 * j + i;
                const uint32_t gates = pack_bfloat16(place[0], place[1]),
                               ups = pack_bfloat16(up_sum[4 * j + i], up_sum[4 * j + i + 1]);
                const float g[2] = {gate_scale[0] * low_bfloat16(gates),
                                    gate_scale[1] * high_bfloat16(gates)};
                const float u[2] = {up_scale[0] * low_bfloat16(ups), up_scale[1] * high_bfloat16(ups)};
                CU_UNROLL
                for (int e = 0; e < 2; ++e)
                    place[e] = g[e] * flushed_reciprocal(1.0f + flushed_exp2(-log2_e * g[e])) * u[e];
            }
        }
    }
};

}  // namespace train_qat::CU_BACKEND
