#include "kernels/cpu/generation/code_products.h"

#include <algorithm>
#include <type_traits>

#include "kernels/codes.h"

namespace train_qat {

namespace {

// Adds the j-th codes of `count` bytes times the three pieces of as many numbers.
template <int bits, typename Count>
inline void add_products(int32_t (&sums)[piece_count], const uint8_t* bytes, const int8_t* pieces, int j,
                         Count count) {
    constexpr int mask = (1 << bits) - 1;
    int32_t high = 0, middle = 0, low = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t code = bytes[i] >> (j * bits) & mask;
        high += code * pieces[i];
        middle += code * pieces[block_bytes + i];
        low += code * pieces[2 * block_bytes + i];
    }
    sums[0] += high, sums[1] += middle, sums[2] += low;
}

// The sum of codes times numbers over the bytes [first, last) of a row, at most most_summed_columns columns.
template <int bits>
int64_t sum_of_products(const uint8_t* codes, const int8_t* pieces, int64_t first, int64_t last) {
    constexpr int in_byte = 8 / bits;
    // The lengths that -group and long rows have become whole vectors.
    using Whole = std::integral_constant<int64_t, block_bytes>;
    using Quarter = std::integral_constant<int64_t, block_bytes / 4>;
    int32_t sums[piece_count] = {};
    while (first < last) {
        const int64_t block = first / block_bytes, begin = first % block_bytes;
        const int64_t count = std::min(block_bytes, last - block * block_bytes) - begin;
        const uint8_t* const bytes = codes + first;
        for (int j = 0; j < in_byte; ++j) {
            const int8_t* const part = pieces + (block * in_byte + j) * piece_count * block_bytes + begin;
            if (count == Whole::value)
                add_products<bits>(sums, bytes, part, j, Whole());
            else if (count == Quarter::value)
                add_products<bits>(sums, bytes, part, j, Quarter());
            else
                add_products<bits>(sums, bytes, part, j, count);
        }
        first += count;
    }
    return (int64_t{sums[0]} << 16) + (int64_t{sums[1]} << 8) + sums[2];
}

template <int bits>
void products(const CodeProduct& product, int64_t first, int64_t last) {
    constexpr int64_t in_byte = 8 / bits;
    const PackedMatrix& weight = *product.weight;
    const double step = level_step(weight.grid), lowest = lowest_level(weight.grid);
    const int64_t groups = product.x.groups, group = product.x.group;
    for (int64_t n = first; n < last; ++n) {
        const uint8_t* const codes =
            static_cast<const uint8_t*>(weight.message.numbers) + n * weight.message.row_bytes;
        for (int64_t m = 0; m < product.x.rows; ++m) {
            double total = 0;
            for (int64_t g = 0; g < groups; ++g) {
                int64_t sum = 0;
                const int64_t end = (g + 1) * group;
                for (int64_t k = g * group; k < end; k += most_summed_columns)
                    sum += sum_of_products<bits>(
                        codes, product.x.row(m), k / in_byte,
                        (std::min(k + most_summed_columns, end) + in_byte - 1) / in_byte);
                total += weight.message.scales[n * groups + g] *
                         (step * static_cast<double>(sum) + lowest * product.x.group_sums[m * groups + g]);
            }
            product.y[m * weight.rows + n] = static_cast<float>(product.x.scales[m] * total);
        }
    }
}

}  // namespace

CodeProductFunction portable_code_product(int bits) {
    switch (bits) {
        case 1:
            return products<1>;
        case 2:
            return products<2>;
        case 4:
            return products<4>;
        default:
            return products<8>;
    }
}

}  // namespace train_qat
