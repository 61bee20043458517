// What quantize(), adamw_and_quantize() and read_weight_messages() share: one walk over all parameters in
// blocks of rows, which ends with writing each row's levels to where matmuls and look-ups read them.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/products/packed_weight.h"

namespace train_qat {

inline void check_has_master(const char* operation, const ParameterRows& parameter) {
    if (parameter.narrow_master != nullptr)
        throw std::logic_error(std::string(operation) +
                               ": the CPU keeps weights in float32, not in bfloat16");
}

// Rows of one parameter that one thread works on.
struct RowBlock {
    size_t parameter;
    int64_t first, last;
};

// Blocks of about 64 KiB, but not less than the 64 rows that share cache lines in a packed weight.
inline std::vector<RowBlock> row_blocks(std::span<const ParameterRows> parameters) {
    std::vector<RowBlock> blocks;
    for (size_t i = 0; i < parameters.size(); ++i) {
        const int64_t rows = parameters[i].rows;
        const int64_t block = std::max<int64_t>(64, rows_per_block(parameters[i].columns));
        for (int64_t first = 0; first < rows; first += block)
            blocks.push_back({i, first, std::min(rows, first + block)});
    }
    return blocks;
}

// Levels of one row (grid none: weights), in the compute type; returns the factor that leaves the matmul.
template <Grid grid, typename T>
float quantize_row(const ParameterRows& parameter, int64_t row, T* __restrict out) {
    const int64_t columns = parameter.columns;
    const float* __restrict weights = parameter.master + row * columns;
    if constexpr (grid == Grid::none) {
        for (int64_t k = 0; k < columns; ++k) out[k] = weights[k];
        return 1.0f;
    } else {
        const int64_t group = parameter.group, groups = columns / group;
        float scale = 1.0f;
        for (int64_t i = 0; i < groups; ++i) {
            scale = effective_scale(parameter.scale[row * groups + i]);
            // One scale per row leaves the matmul as a factor of its output; several are folded in here.
            const float factor = groups == 1 ? 1.0f : scale;
            const float* __restrict w = weights + i * group;
            T* __restrict q = out + i * group;
            for (int64_t k = 0; k < group; ++k) q[k] = GridTraits<grid>::level(w[k] / scale) * factor;
        }
        return groups == 1 ? scale : 1.0f;
    }
}

// Fills the ComputeWeights of `parameters`. make_row.operator()<grid, T>(index of the parameter, row, out)
// writes a row of levels in the compute type T and returns the factor that leaves the matmul;
// make_row.begin(index, first, last) comes before the rows of a block.
template <typename MakeRow>
void CpuBackend::write_levels(std::span<const ParameterRows> parameters, MakeRow&& make_row) {
    for (const ParameterRows& p : parameters)
        if (p.compute != nullptr) p.compute->scaled = p.grid != Grid::none && p.group == p.columns;
    const std::vector<RowBlock> blocks = row_blocks(parameters);
    parallel_for(static_cast<int64_t>(blocks.size()), 1, [&](int64_t index, int64_t) {
        const RowBlock& block = blocks[index];
        const ParameterRows& p = parameters[block.parameter];
        make_row.begin(block.parameter, block.first, block.last);
        if (p.compute == nullptr) return;
        with_compute_type("quantize", p.compute->dtype, [&]<typename T>() {
            const PackedWeight packed = packed_weight(*p.compute);
            constexpr int64_t rows_at_a_time = 16;
            T* levels = reinterpret_cast<T*>(thread_scratch(rows_at_a_time * p.columns));
            with_grid(p.grid, [&]<Grid grid>() {
                for (int64_t row = block.first, count = 0; row < block.last; row += count) {
                    // Whole sixteens of the matrix, in which these rows may begin anywhere.
                    count = std::min(rows_at_a_time - (p.first_row + row) % rows_at_a_time, block.last - row);
                    for (int64_t r = 0; r < count; ++r)
                        p.compute->scale_storage[p.first_row + row + r] =
                            make_row.template operator()<grid, T>(block.parameter, row + r,
                                                                  levels + r * p.columns);
                    write_packed(packed, p.first_row + row, count, levels);
                }
            });
            finish_past_caches();
        });
    });
}

// Levels of the masters, once update(parameter, first row, last row) has changed them.
template <typename Update>
struct UpdatedMasters {
    std::span<const ParameterRows> parameters;
    Update& update;

    void begin(size_t parameter, int64_t first, int64_t last) const {
        update(parameters[parameter], first, last);
    }
    template <Grid grid, typename T>
    float operator()(size_t parameter, int64_t row, T* out) const {
        return quantize_row<grid>(parameters[parameter], row, out);
    }
};

template <typename Update>
void CpuBackend::update_and_quantize(std::span<const ParameterRows> parameters, Update&& update) {
    write_levels(parameters, UpdatedMasters<std::remove_reference_t<Update>>{parameters, update});
}

}  // namespace train_qat
