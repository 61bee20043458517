// Weights as ranks exchange them: rows of packed codes and scales, or of plain numbers. A packed weight
// (packed_weight.h) mixes rows, so messages are made from the masters and are a buffer of their own; only the
// scales of rows stand in the ComputeWeight.
#include <cstring>
#include <limits>

#include "kernels/codes.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/weight_update.h"
#include "kernels/weight_message.h"

namespace train_qat {

namespace {

// Codes of one group. Returns the scale as readers need it.
template <Grid grid>
float codes_of_group(const float* __restrict weights, float scale, int64_t count, uint8_t* __restrict codes) {
    bool has_nan = false;
#pragma omp simd reduction(| : has_nan)
    for (int64_t k = 0; k < count; ++k) {
        codes[k] = static_cast<uint8_t>(code_of_level<grid>(GridTraits<grid>::level(weights[k] / scale)));
        has_nan |= weights[k] != weights[k];
    }
    return has_nan ? std::numeric_limits<float>::quiet_NaN() : scale;
}

// Several codes to a byte, as kernels/codes.h says. `codes` goes on with zeros to whole bytes.
template <int bits>
void pack(const uint8_t* __restrict codes, uint8_t* __restrict packed, int64_t bytes) {
    constexpr int in_byte = 8 / bits;
    for (int64_t i = 0; i < bytes; ++i) {
        uint32_t byte = 0;
        for (int j = 0; j < in_byte; ++j) byte |= static_cast<uint32_t>(codes[i * in_byte + j]) << (j * bits);
        packed[i] = static_cast<uint8_t>(byte);
    }
}

// The first `count` levels of a row of codes.
template <Grid grid, typename T>
void unpack(const uint8_t* __restrict packed, T* __restrict levels, int64_t count) {
    constexpr int bits = code_bits(grid), in_byte = 8 / bits;
    const int64_t whole = count / in_byte;
    for (int64_t i = 0; i < whole; ++i)
        for (int j = 0; j < in_byte; ++j)
            levels[i * in_byte + j] = level_of_code<grid>(packed[i] >> (j * bits) & code_mask(grid));
    for (int64_t k = whole * in_byte; k < count; ++k)
        levels[k] = level_of_code<grid>(packed[whole] >> (k % in_byte * bits) & code_mask(grid));
}

// `scratch`: room for the codes of a row, one a byte.
template <Grid grid, typename T>
void write_row(const ParameterRows& p, int64_t row, uint8_t* numbers, int64_t row_bytes, float* scales,
               uint8_t* scratch) {
    const float* const weights = p.master + row * p.columns;
    if constexpr (grid == Grid::none) {
        T* __restrict out = reinterpret_cast<T*>(numbers);
        for (int64_t k = 0; k < p.columns; ++k) out[k] = weights[k];
    } else {
        constexpr int bits = code_bits(grid);
        const int64_t groups = p.columns / p.group;
        for (int64_t i = 0; i < groups; ++i)
            scales[i] =
                codes_of_group<grid>(weights + i * p.group, effective_scale(p.scale[row * groups + i]),
                                     p.group, scratch + i * p.group);
        std::memset(scratch + p.columns, 0, static_cast<size_t>(row_bytes * 8 / bits - p.columns));
        pack<bits>(scratch, numbers, row_bytes);
    }
}

// A row of levels from a message: as quantize_row makes it from masters.
struct FromMessages {
    std::span<const ParameterRows> parameters;
    std::span<const WeightMessage> messages;

    void begin(size_t, int64_t, int64_t) const {}

    template <Grid grid, typename T>
    float operator()(size_t parameter, int64_t row, T* out) const {
        const ParameterRows& p = parameters[parameter];
        const WeightMessage& message = messages[parameter];
        const auto* const numbers = static_cast<const uint8_t*>(message.numbers) + row * message.row_bytes;
        if constexpr (grid == Grid::none) {
            std::memcpy(out, numbers, static_cast<size_t>(message.row_bytes));
            return 1.0f;
        } else {
            const float* const scales = message.scales + row * message.scales_per_row;
            const bool one_scale = message.scales_per_row == 1;
            unpack<grid>(numbers, out, p.columns);
            for (int64_t i = 0; i < message.scales_per_row && !one_scale; ++i) {
                T* __restrict group = out + i * p.group;
                for (int64_t k = 0; k < p.group; ++k) group[k] = group[k] * scales[i];
            }
            return one_scale ? scales[0] : 1.0f;
        }
    }
};

}  // namespace

int64_t CpuBackend::weight_message_bytes(const ParameterRows& parameter) const {
    return buffered_message_bytes(parameter);
}

std::vector<WeightMessage> CpuBackend::place_weight_messages(std::span<const ParameterRows> parameters,
                                                             void* buffer) {
    std::vector<WeightMessage> messages;
    auto* place = static_cast<char*>(buffer);
    for (const ParameterRows& p : parameters) {
        messages.push_back(buffered_message(p, place));
        place += buffered_message_bytes(p);
    }
    return messages;
}

void CpuBackend::compute(const WriteWeightMessages& args) {
    for (const ParameterRows& p : args.rows) check_has_master(args.name, p);
    const std::vector<RowBlock> blocks = row_blocks(args.rows);
    parallel_for(static_cast<int64_t>(blocks.size()), 1, [&](int64_t index, int64_t) {
        const RowBlock& block = blocks[index];
        const ParameterRows& p = args.rows[block.parameter];
        const WeightMessage& message = args.messages[block.parameter];
        const int64_t first = p.first_element / p.columns;
        with_compute_type("write_weight_messages", p.compute->dtype, [&]<typename T>() {
            with_grid(p.grid, [&]<Grid grid>() {
                // Most codes that a row's bytes hold: one bit each.
                auto* const codes = reinterpret_cast<uint8_t*>(
                    thread_scratch(message.row_bytes * 8 / static_cast<int64_t>(sizeof(float)) + 1));
                for (int64_t row = block.first; row < block.last; ++row)
                    write_row<grid, T>(
                        p, row, static_cast<uint8_t*>(message.numbers) + (first + row) * message.row_bytes,
                        message.row_bytes, message.scales + (first + row) * message.scales_per_row, codes);
            });
        });
    });
}

void CpuBackend::compute(const ReadWeightMessages& args) {
    write_levels(args.parameters, FromMessages{args.parameters, args.messages});
}

}  // namespace train_qat
