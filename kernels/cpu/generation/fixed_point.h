// Activations as whole numbers, for products with packed codes: x[k] = scale * n[k] with |n| < 2^23, which is x within 2^-23
// of the largest magnitude of its row. Codes are whole numbers too, so their products are summed exactly: results
// depend on no order, no number of threads and no instruction set.
//
// A number is kept as three signed bytes, n = 65536 n0 + 256 n1 + n2, because processors multiply bytes fastest
// (AVX512-VNNI: 64 at a time). They stand in the order in which a row of codes (kernels/codes.h) is unpacked: a block is
// what 64 bytes of codes hold, 64 * in_byte columns, and its part j has the columns block * 64 * in_byte + i * in_byte + j
// for i < 64, whose codes are the j-th of each byte. Behind the last column come zeros.
#pragma once

#include <cstdint>

namespace train_qat {

constexpr int64_t block_bytes = 64;
constexpr int piece_count = 3;

// The forms of M rows of K numbers, as views. Made by fixed_point_rows.
struct FixedPointRows {
    int64_t rows = 0, columns = 0, group = 0;
    int64_t in_byte = 1;             // codes in a byte: 1, 2, 4 or 8
    int64_t blocks = 0, groups = 0;  // of a row
    int8_t* pieces = nullptr;        // (M, blocks, in_byte, 3, 64)
    float* scales = nullptr;         // (M); NaN where a number of the row is not finite
    double* group_sums = nullptr;    // (M, groups) sums of n

    int64_t row_pieces() const { return blocks * in_byte * piece_count * block_bytes; }
    const int8_t* row(int64_t m) const { return pieces + m * row_pieces(); }
};

// Sizes alone, without memory.
FixedPointRows fixed_point_rows(int64_t rows, int64_t columns, int64_t group, int64_t in_byte);
// Bytes of all that FixedPointRows point to, and of what making them needs besides.
int64_t fixed_point_bytes(const FixedPointRows& sizes);
// The same with pointers into `memory`, of that many bytes and aligned to 64.
FixedPointRows placed_in(void* memory, FixedPointRows sizes);

// Row m of x, (M, K).
void make_fixed_point(const FixedPointRows& rows, int64_t m, const float* x);

}  // namespace train_qat
