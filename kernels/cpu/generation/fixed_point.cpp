#include "kernels/cpu/generation/fixed_point.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace train_qat {

namespace {

// Bytes could hold a little more; the scale is rounded, and must not lead beyond that.
constexpr float largest_number = 127 * 65536;
// Below it the reciprocal of a scale is no finite number: such rows count as zero.
constexpr float smallest_magnitude = 1e-30f;

int64_t rounded_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

int64_t padded_columns(const FixedPointRows& rows) {
    return rows.blocks * block_bytes * rows.in_byte;
}

// The largest magnitude, or NaN.
float magnitude_of(const float* __restrict x, int64_t count) {
    float largest = 0;
    int32_t strange = 0;
#pragma omp simd reduction(max : largest) reduction(| : strange)
    for (int64_t k = 0; k < count; ++k) {
        const float magnitude = std::fabs(x[k]);
        largest = magnitude > largest ? magnitude : largest;
        strange |= magnitude <= std::numeric_limits<float>::max() ? 0 : 1;
    }
    return strange != 0 ? std::numeric_limits<float>::quiet_NaN() : largest;
}

// n and its bytes: each byte is rounded off, not cut off, so that all are signed.
void split(const float* __restrict x, float inverse, int64_t count, int32_t* __restrict numbers,
           int8_t* __restrict high, int8_t* __restrict middle, int8_t* __restrict low) {
    for (int64_t k = 0; k < count; ++k) {
        const float value = x[k] * inverse;
        const auto n = static_cast<int32_t>(value + (value < 0 ? -0.5f : 0.5f));
        const int32_t upper = (n + 128) >> 8;
        numbers[k] = n;
        low[k] = static_cast<int8_t>(n);
        middle[k] = static_cast<int8_t>(upper);
        high[k] = static_cast<int8_t>((upper + 128) >> 8);
    }
}

// From the order of columns to the order of codes: one piece of a row.
template <int in_byte>
void deal_out(const int8_t* __restrict bytes, int64_t blocks, int8_t* __restrict pieces) {
    for (int64_t block = 0; block < blocks; ++block)
        for (int j = 0; j < in_byte; ++j) {
            const int8_t* __restrict from = bytes + block * block_bytes * in_byte + j;
            int8_t* __restrict to = pieces + (block * in_byte + j) * piece_count * block_bytes;
            for (int64_t i = 0; i < block_bytes; ++i) to[i] = from[i * in_byte];
        }
}

}  // namespace

FixedPointRows fixed_point_rows(int64_t rows, int64_t columns, int64_t group, int64_t in_byte) {
    FixedPointRows sizes;
    sizes.rows = rows;
    sizes.columns = columns;
    sizes.group = group;
    sizes.in_byte = in_byte;
    sizes.blocks = (columns + block_bytes * in_byte - 1) / (block_bytes * in_byte);
    sizes.groups = columns / group;
    return sizes;
}

int64_t fixed_point_bytes(const FixedPointRows& sizes) {
    return rounded_up(sizes.rows * sizes.row_pieces()) + rounded_up(sizes.rows * 4) +
           rounded_up(sizes.rows * sizes.groups * 8) + (4 + piece_count) * padded_columns(sizes);
}

FixedPointRows placed_in(void* memory, FixedPointRows sizes) {
    auto* place = static_cast<char*>(memory);
    sizes.pieces = reinterpret_cast<int8_t*>(place);
    place += rounded_up(sizes.rows * sizes.row_pieces());
    sizes.scales = reinterpret_cast<float*>(place);
    place += rounded_up(sizes.rows * 4);
    sizes.group_sums = reinterpret_cast<double*>(place);
    return sizes;
}

void make_fixed_point(const FixedPointRows& rows, int64_t m, const float* x) {
    const int64_t columns = rows.columns, padded = padded_columns(rows), groups = rows.groups;
    auto* const numbers = reinterpret_cast<int32_t*>(reinterpret_cast<char*>(rows.group_sums) +
                                                     rounded_up(rows.rows * groups * 8));
    auto* const bytes = reinterpret_cast<int8_t*>(numbers + padded);
    const float magnitude = magnitude_of(x, columns);
    const bool normal = magnitude >= smallest_magnitude;
    rows.scales[m] = normal || magnitude != magnitude ? magnitude / largest_number : 0.0f;
    if (normal)
        split(x, largest_number / magnitude, columns, numbers, bytes, bytes + padded, bytes + 2 * padded);
    for (int piece = 0; piece < piece_count; ++piece) {
        int8_t* const from = bytes + piece * padded;
        int8_t* const to = rows.pieces + m * rows.row_pieces() + piece * block_bytes;
        if (!normal) std::memset(from, 0, static_cast<size_t>(columns));
        std::memset(from + columns, 0, static_cast<size_t>(padded - columns));
        switch (rows.in_byte) {
            case 1:
                deal_out<1>(from, rows.blocks, to);
                break;
            case 2:
                deal_out<2>(from, rows.blocks, to);
                break;
            case 4:
                deal_out<4>(from, rows.blocks, to);
                break;
            default:
                deal_out<8>(from, rows.blocks, to);
        }
    }
    if (!normal) std::memset(numbers, 0, static_cast<size_t>(columns) * sizeof(int32_t));
    for (int64_t g = 0; g < groups; ++g) {
        int64_t sum = 0;
        for (int64_t k = g * rows.group; k < (g + 1) * rows.group; ++k) sum += numbers[k];
        rows.group_sums[m * groups + g] = static_cast<double>(sum);
    }
}

}  // namespace train_qat
