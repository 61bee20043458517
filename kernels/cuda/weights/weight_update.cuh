// How quantize() and its kin go over weights in kernels. One launch works on all parameters: a thread block takes a
// block of rows (kernels/cuda/weights/weight_tables.h). There are two ways through it:
//   * by groups (initialize_scales, ste_backward_and_norm), where something is summed over each group: groups of
//     weights with one scale lie one behind the other in memory, and each is summed by a team of lanes;
//   * by steps (quantize, adamw_and_quantize), where each weight stands for itself: a warp takes 128 neighbouring
//     columns of a row at a time, 32 where addresses allow no vectors. The scales come before: they depend on nothing
//     but themselves. In the end each weight's level is written to where matmuls read it
//     (kernels/cuda/weights/weight_layout.h).
// A level that is NaN has no code: it makes the scale of its group NaN, so that it stays visible.
#pragma once

#include <limits>
#include <type_traits>

#include "kernels/codes.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/cuda/weights/weight_tables.h"

namespace train_qat::CU_BACKEND {

// ---- dispatch

// Calls function.operator()<grid, width, Master>(): width is the elements of one access, Master the type of the
// weights. The same branch for all threads of a block.
template <Grid grid, typename Function>
CU_DEVICE void with_access(const UpdateParameter& p, const Function& function) {
    if (p.narrow_master != nullptr) {
        if (p.vectors)
            function.template operator()<grid, 4, bfloat16>();
        else
            function.template operator()<grid, 1, bfloat16>();
    } else {
        if (p.vectors)
            function.template operator()<grid, 4, float>();
        else
            function.template operator()<grid, 1, float>();
    }
}

template <typename Function>
CU_DEVICE void with_types(const UpdateParameter& p, const Function& function) {
    switch (p.grid) {
        case Grid::none:
            return with_access<Grid::none>(p, function);
        case Grid::binary:
            return with_access<Grid::binary>(p, function);
        case Grid::ternary:
            return with_access<Grid::ternary>(p, function);
        case Grid::quaternary:
            return with_access<Grid::quaternary>(p, function);
        case Grid::integer3:
            return with_access<Grid::integer3>(p, function);
        case Grid::integer4:
            return with_access<Grid::integer4>(p, function);
        case Grid::integer5:
            return with_access<Grid::integer5>(p, function);
        case Grid::integer6:
            return with_access<Grid::integer6>(p, function);
        case Grid::integer8:
            return with_access<Grid::integer8>(p, function);
    }
}

template <int width, typename Master>
CU_DEVICE Vector<float, width> load_weights(const UpdateParameter& p, int64_t element) {
    if constexpr (std::is_same_v<Master, float>) {
        return load_vector<width>(p.master + element);
    } else {
        const Vector<bfloat16, width> narrow = load_vector<width>(p.narrow_master + element);
        Vector<float, width> weights;
        CU_UNROLL
        for (int j = 0; j < width; ++j) weights[j] = static_cast<float>(narrow[j]);
        return weights;
    }
}

// ---- by groups

// One group of weights, as one lane of its team sees it.
struct Group {
    int64_t index;      // of the scale
    int64_t element;    // of the first weight
    bool exists;        // teams past the end have no group, but take part in sums
    bool leads;         // one lane of the team
    int first, stride;  // this lane's columns, the first of each access
};

// Calls body(group) for every group of the row block, all 32 lanes together.
template <int width, typename Body>
CU_DEVICE void for_each_group(const UpdateParameter& p, const RowBlock& block, const Body& body) {
    const int lanes = p.lanes_per_group, teams = 32 / lanes;
    const int team = lane_index() / lanes, lane = lane_index() % lanes;
    const int64_t first = static_cast<int64_t>(block.first_row) * p.groups;
    const int64_t last = first + static_cast<int64_t>(block.rows) * p.groups;
    for (int64_t index = first + warp_index() * teams; index < last; index += update_warps * teams) {
        const int64_t mine = index + team;
        body(Group{mine, mine * p.group, mine < last, mine < last && lane == 0, lane * width, lanes * width});
    }
}

// Sum and maximum over the lanes of a team.
template <typename T>
CU_DEVICE T team_sum(T value, int lanes) {
    for (int bits = lanes / 2; bits > 0; bits /= 2) value += shuffle_xor(value, bits);
    return value;
}
template <typename T>
CU_DEVICE T team_max(T value, int lanes) {
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        const T other = shuffle_xor(value, bits);
        value = other > value ? other : value;
    }
    return value;
}

// ---- by steps

// Codes of `width` columns per lane, 32 lanes side by side, into one row of codes. Lanes that share a word of
// 32 bits join theirs in the first of them.
template <int bits, int width>
CU_DEVICE void store_codes(uint8_t* row, int row_bytes, int column, const uint32_t (&codes)[width]) {
    constexpr int lane_bits = bits * width, lanes_per_word = 32 / lane_bits;
    uint32_t word = 0;
    CU_UNROLL
    for (int j = 0; j < width; ++j) word |= codes[j] << (bits * j);
    word <<= lane_bits % 32 * (lane_index() % lanes_per_word);
    CU_UNROLL
    for (int other = 1; other < lanes_per_word; other *= 2) word |= shuffle_xor(word, other);
    const int byte = column / 8 * bits + column % 8 * bits / 8;
    if (lane_index() % lanes_per_word == 0 && byte < row_bytes)
        store(reinterpret_cast<uint32_t*>(row + byte), word);
}

template <typename T, int width>
CU_DEVICE void store_rounded(T* address, const Vector<float, width>& values) {
    Vector<T, width> rounded;
    CU_UNROLL
    for (int j = 0; j < width; ++j) rounded[j] = static_cast<T>(values[j]);
    store_vector(address, rounded);
}

// The levels of `weights`, columns [column, column + width) of a row; all lanes together. `inside`: these
// columns exist; otherwise they may still be padding of a row of codes.
template <Grid grid, int width>
CU_DEVICE void store_levels(const UpdateParameter& p, int64_t row, int column, bool inside,
                            const Vector<float, width>& weights, float scale) {
    Vector<float, width> levels = weights;
    if constexpr (grid != Grid::none) {
        CU_UNROLL
        for (int j = 0; j < width; ++j) levels[j] = GridTraits<grid>::level(weights[j] / scale);
        if (p.form == WeightForm::codes) {
            uint32_t codes[width];
            CU_UNROLL
            for (int j = 0; j < width; ++j) codes[j] = inside ? code_of_level<grid>(levels[j]) : 0u;
            store_codes<code_bits(grid)>(static_cast<uint8_t*>(p.levels) + row * p.code_row_bytes,
                                         p.code_row_bytes, column, codes);
            return;
        }
        // One scale per row leaves the matmul as a factor of its output; several are folded in here.
        if (p.groups > 1) {
            CU_UNROLL
            for (int j = 0; j < width; ++j) levels[j] *= scale;
        }
    }
    if (!inside) return;
    const int64_t element = row * p.columns + column;
    if (p.form == WeightForm::bfloat16)
        store_rounded(static_cast<bfloat16*>(p.levels) + element, levels);
    else
        store_vector(static_cast<float*>(p.levels) + element, levels);
}

// New scales, and the effective ones to their readers.
template <Grid grid, typename Step>
CU_DEVICE void update_scales(const UpdateParameter& p, const RowBlock& block, const Step& step) {
    const bool one_scale = grid != Grid::none && p.groups == 1;
    if constexpr (grid != Grid::none) {
        const int64_t first = static_cast<int64_t>(block.first_row) * p.groups;
        const int64_t last = first + static_cast<int64_t>(block.rows) * p.groups;
        float* const effective = one_scale ? p.row_scale : p.group_scale;
        for (int64_t i = first + threadIdx.x; i < last; i += update_threads) {
            const float scale = step.scale(p, i);
            if (effective != nullptr) store(effective + i, effective_scale(scale));
        }
    }
    if (!one_scale && p.row_scale != nullptr)
        for (int i = static_cast<int>(threadIdx.x); i < block.rows; i += update_threads)
            store(p.row_scale + block.first_row + i, 1.0f);
}

// Weights, scales and levels of a row block. step.scale(p, i) and step.weights<width, Master>(p, element)
// return the new values, which they have stored. Returns whether this thread has met a NaN weight.
template <Grid grid, int width, typename Master, typename Step>
CU_DEVICE bool update_rows(const UpdateParameter& p, const RowBlock& block, const Step& step) {
    update_scales<grid>(p, block, step);
    block_sync();  // the scales are visible to the whole block
    constexpr int step_columns = 32 * width;
    int row_columns = p.columns;
    if constexpr (grid != Grid::none)
        if (p.form == WeightForm::codes) row_columns = p.code_row_bytes / code_bits(grid) * 8;
    const int steps_per_row = (row_columns + step_columns - 1) / step_columns;
    const int steps = steps_per_row * block.rows;
    bool has_nan = false;
    for (int i = warp_index(); i < steps; i += update_warps) {
        const int64_t row = block.first_row + i / steps_per_row;
        const int column = i % steps_per_row * step_columns + lane_index() * width;
        const bool inside = column < p.columns;
        Vector<float, width> weights{};
        float scale = 1.0f;
        if (inside) {
            if constexpr (grid != Grid::none) {
                const int64_t index = p.groups == 1 ? row : row * p.groups + column / p.group;
                scale = effective_scale(load(p.scale + index));
            }
            weights = step.template weights<width, Master>(p, row * p.columns + column);
        }
        CU_UNROLL
        for (int j = 0; j < width; ++j) has_nan |= weights[j] != weights[j];
        if (p.form != WeightForm::absent) store_levels<grid>(p, row, column, inside, weights, scale);
    }
    return has_nan;
}

// Makes the effective scales of groups with a NaN weight NaN; one thread takes a group. A rare case: it loads
// what it needs again, so that no register is kept for it.
CU_DEVICE void mark_nan_groups(const UpdateTables& tables) {
    const RowBlock block = load(tables.row_blocks + blockIdx.x);
    const UpdateParameter p = load(tables.parameters + block.parameter);
    const int64_t first = static_cast<int64_t>(block.first_row) * p.groups;
    const int64_t last = first + static_cast<int64_t>(block.rows) * p.groups;
    float* const effective = p.groups == 1 ? p.row_scale : p.group_scale;
    for (int64_t i = first + threadIdx.x; i < last; i += update_threads) {
        bool has_nan = false;
        for (int64_t k = i * p.group; k < (i + 1) * p.group; ++k) {
            const float weight = p.narrow_master != nullptr ? load_weights<1, bfloat16>(p, k)[0]
                                                            : load_weights<1, float>(p, k)[0];
            has_nan |= weight != weight;
        }
        if (has_nan) store(effective + i, std::numeric_limits<float>::quiet_NaN());
    }
}

// What a thread block of quantize() and adamw_and_quantize() does. make_step(block, p) returns the step.
template <typename MakeStep>
CU_DEVICE void update_row_block(const UpdateTables& tables, const MakeStep& make_step) {
    CU_SHARED(scratch, int[update_warps]);
    const RowBlock block = load(tables.row_blocks + blockIdx.x);
    const UpdateParameter p = load(tables.parameters + block.parameter);
    const auto step = make_step(p, block);
    bool has_nan = false;
    with_types(p, [&]<Grid grid, int width, typename Master>() {
        has_nan = update_rows<grid, width, Master>(p, block, step);
    });
    if (p.form != WeightForm::codes) return;
    if (block_sum<update_threads>(has_nan ? 1 : 0, scratch) > 0) mark_nan_groups(tables);
}

// ---- launcher, in quantize.cu

// Quantizes what the tables say to where they say.
void quantize(CuStream stream, const UpdateTables& tables);

}  // namespace train_qat::CU_BACKEND
