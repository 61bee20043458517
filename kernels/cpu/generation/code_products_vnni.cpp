// Products of codes with AVX512-VNNI, whose vpdpbusd adds 64 products of unsigned and signed bytes to 16 sums of int32.
// 64 bytes of codes are unpacked by a shift and a mask for each part of a block, and multiplied with the three bytes of
// its numbers. Bound by reading the codes: 4-bit ones take nine instructions for 128 of them.
#include "kernels/codes.h"
#include "kernels/cpu/generation/code_products.h"

#if defined(__x86_64__)

// GCC 12 and before say of their own intrinsics that they use what is not initialized (GCC's bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

// Compiled for every x86: chosen where the processor has it, whatever the build was told of.
#define TRAIN_QAT_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define TRAIN_QAT_VNNI_INLINE TRAIN_QAT_VNNI __attribute__((always_inline)) inline

namespace train_qat {

namespace {

constexpr int lanes = 16;

// Sums of R outputs and M rows of x.
template <int R, int M>
struct Sums {
    __m512i of[R][M][piece_count];
};

template <int R, int M>
TRAIN_QAT_VNNI_INLINE void clear(Sums<R, M>& sums) {
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m)
            for (int p = 0; p < piece_count; ++p) sums.of[r][m][p] = _mm512_setzero_si512();
}

// Adds part j of a block, and those behind it. numbers: of the block, of the first of M rows.
template <int bits, int j, int R, int M>
TRAIN_QAT_VNNI_INLINE void add_parts(Sums<R, M>& sums, const __m512i* bytes, const int8_t* numbers,
                                     int64_t row_pieces) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
    __m512i codes[R];
    for (int r = 0; r < R; ++r) {
        if constexpr (bits == 8)
            codes[r] = bytes[r];
        else
            codes[r] = _mm512_and_si512(_mm512_srli_epi16(bytes[r], j * bits), mask);
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < piece_count; ++p) {
            const __m512i x =
                _mm512_load_si512(numbers + m * row_pieces + (j * piece_count + p) * block_bytes);
            for (int r = 0; r < R; ++r) sums.of[r][m][p] = _mm512_dpbusd_epi32(sums.of[r][m][p], codes[r], x);
        }
    if constexpr ((j + 1) * bits < 8) add_parts<bits, j + 1>(sums, bytes, numbers, row_pieces);
}

// Bytes of R rows of codes, at most 64 of them; behind their end zeros.
template <int R>
TRAIN_QAT_VNNI_INLINE void load_codes(__m512i* bytes, const uint8_t* codes, int64_t row_bytes, int64_t left) {
    if (left >= block_bytes) {
        for (int r = 0; r < R; ++r) bytes[r] = _mm512_loadu_si512(codes + r * row_bytes);
    } else {
        const __mmask64 there = (__mmask64{1} << left) - 1;
        for (int r = 0; r < R; ++r) bytes[r] = _mm512_maskz_loadu_epi8(there, codes + r * row_bytes);
    }
}

// Adds the blocks [first, last) of R rows of codes with M rows of numbers.
template <int bits, int R, int M>
TRAIN_QAT_VNNI_INLINE void add_blocks(Sums<R, M>& sums, const CodeProduct& product, const uint8_t* codes,
                                      int64_t m, int64_t first, int64_t last) {
    constexpr int64_t part_pieces = 8 / bits * piece_count * block_bytes;
    const int64_t row_bytes = product.weight->message.row_bytes, row_pieces = product.x.row_pieces();
    const int8_t* numbers = product.x.row(m) + first * part_pieces;
    for (int64_t block = first; block < last; ++block, numbers += part_pieces) {
        __m512i bytes[R];
        load_codes<R>(bytes, codes + block * block_bytes, row_bytes, row_bytes - block * block_bytes);
        add_parts<bits, 0>(sums, bytes, numbers, row_pieces);
    }
}

// The sum of codes times numbers that 3 * 16 sums stand for, of four: whole numbers below 2^53.
TRAIN_QAT_VNNI_INLINE __m256d totals_of(const __m512i* const (&sums)[4]) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i quarters[4];  // [high, middle, low, 0] four times
    for (int i = 0; i < 4; ++i) {
        const __m512i high = sums[i][0], middle = sums[i][1], low = sums[i][2];
        const __m512i first =
            _mm512_add_epi32(_mm512_unpacklo_epi32(high, middle), _mm512_unpackhi_epi32(high, middle));
        const __m512i second =
            _mm512_add_epi32(_mm512_unpacklo_epi32(low, zero), _mm512_unpackhi_epi32(low, zero));
        quarters[i] =
            _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
    }
    __m512i halves[2];
    for (int i = 0; i < 2; ++i)
        halves[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0x88),
                                     _mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0xdd));
    const __m512i pieces = _mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                                            _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
    const __m512i by_piece = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), pieces);
    const __m256d high = _mm256_cvtepi32_pd(_mm512_castsi512_si128(by_piece));
    const __m256d middle = _mm256_cvtepi32_pd(_mm512_extracti32x4_epi32(by_piece, 1));
    const __m256d low = _mm256_cvtepi32_pd(_mm512_extracti32x4_epi32(by_piece, 2));
    return _mm256_fmadd_pd(high, _mm256_set1_pd(65536), _mm256_fmadd_pd(middle, _mm256_set1_pd(256), low));
}

// One scale per row: y of the outputs [n, n + R) for the rows [m, m + M), where R or M is four, or both are one.
template <int bits, int R, int M>
TRAIN_QAT_VNNI_INLINE void row_tile(const CodeProduct& product, int64_t n, int64_t m) {
    const PackedMatrix& weight = *product.weight;
    const auto* const codes =
        static_cast<const uint8_t*>(weight.message.numbers) + n * weight.message.row_bytes;
    constexpr int64_t most_blocks = most_summed_columns / (block_bytes * (8 / bits));
    constexpr int fours = M == 4 ? R : 1;
    const int64_t blocks = product.x.blocks;
    __m256d totals[fours];
    for (int i = 0; i < fours; ++i) totals[i] = _mm256_setzero_pd();
    for (int64_t first = 0; first < blocks; first += most_blocks) {
        Sums<R, M> sums;
        clear(sums);
        add_blocks<bits>(sums, product, codes, m, first,
                         first + most_blocks < blocks ? first + most_blocks : blocks);
        for (int i = 0; i < fours; ++i) {
            const __m512i* of[4];
            for (int j = 0; j < 4; ++j) of[j] = M == 4 ? sums.of[i][j % M] : sums.of[j % R][0];
            totals[i] = _mm256_add_pd(totals[i], totals_of(of));
        }
    }
    const __m256d step = _mm256_set1_pd(level_step(weight.grid)),
                  lowest = _mm256_set1_pd(lowest_level(weight.grid));
    const float* const scales = weight.message.scales + n;
    const double* const x_sums = product.x.group_sums + m;
    for (int i = 0; i < fours; ++i) {
        const __m256d x_sum = M == 4 ? _mm256_loadu_pd(x_sums) : _mm256_set1_pd(x_sums[0]);
        const __m256d x_scale = M == 4 ? _mm256_cvtps_pd(_mm_loadu_ps(product.x.scales + m))
                                       : _mm256_set1_pd(product.x.scales[m]);
        const __m256d scale = R == 4 ? _mm256_cvtps_pd(_mm_loadu_ps(scales)) : _mm256_set1_pd(scales[i]);
        const __m256d sum = _mm256_add_pd(_mm256_mul_pd(step, totals[i]), _mm256_mul_pd(lowest, x_sum));
        const __m128 y = _mm256_cvtpd_ps(_mm256_mul_pd(x_scale, _mm256_mul_pd(scale, sum)));
        if constexpr (R == 4) {
            _mm_storeu_ps(product.y + m * weight.rows + n, y);
        } else {
            alignas(16) float of_rows[4];
            _mm_store_ps(of_rows, y);
            for (int j = 0; j < M; ++j) product.y[(m + j) * weight.rows + n + i] = of_rows[j];
        }
    }
}

// Four outputs share the numbers of one row; two outputs and four rows share both.
template <int bits>
TRAIN_QAT_VNNI void row_products(const CodeProduct& product, int64_t first, int64_t last) {
    const int64_t rows = product.x.rows;
    int64_t m = 0;
    for (; m + 4 <= rows; m += 4) {
        int64_t n = first;
        for (; n + 2 <= last; n += 2) row_tile<bits, 2, 4>(product, n, m);
        if (n < last) row_tile<bits, 1, 4>(product, n, m);
    }
    for (; m < rows; ++m) {
        int64_t n = first;
        for (; n + 4 <= last; n += 4) row_tile<bits, 4, 1>(product, n, m);
        for (; n < last; ++n) row_tile<bits, 1, 1>(product, n, m);
    }
}

// Where the scales of a block's 16 sums are: neighbouring sums share one, or all do.
struct LaneGroups {
    int64_t in_block;         // groups in a block, or 0: a block lies in one group
    int64_t blocks_of_group;  // then
    __m512i of_lane;          // group of each sum, counted from the block's first
};

TRAIN_QAT_VNNI_INLINE LaneGroups lane_groups(int64_t group, int64_t in_byte) {
    const int64_t block_columns = block_bytes * in_byte;
    alignas(64) int32_t of_lane[lanes];
    for (int lane = 0; lane < lanes; ++lane)
        of_lane[lane] = group < block_columns ? static_cast<int32_t>(lane * 4 * in_byte / group) : 0;
    return {group < block_columns ? block_columns / group : 0,
            group < block_columns ? 1 : group / block_columns, _mm512_load_si512(of_lane)};
}

// Several scales per row: sums of a block become float32, times their scales.
template <int bits, int R>
TRAIN_QAT_VNNI_INLINE void group_tile(const CodeProduct& product, int64_t n, int64_t m,
                                      const LaneGroups& lane) {
    const PackedMatrix& weight = *product.weight;
    const int64_t groups = product.x.groups;
    const auto* const codes =
        static_cast<const uint8_t*>(weight.message.numbers) + n * weight.message.row_bytes;
    const float* const scales = weight.message.scales + n * groups;
    __m512 totals[R];
    for (int r = 0; r < R; ++r) totals[r] = _mm512_setzero_ps();
    const __m512 factor = _mm512_set1_ps(65536.0f);
    int64_t first = 0, blocks_left = lane.blocks_of_group;  // of this group
    for (int64_t block = 0; block < product.x.blocks; ++block) {
        Sums<R, 1> sums;
        clear(sums);
        add_blocks<bits>(sums, product, codes, m, block, block + 1);
        const int64_t here = lane.in_block == 0               ? 1
                             : groups - first < lane.in_block ? groups - first
                                                              : lane.in_block;
        const auto there = static_cast<__mmask16>((1u << here) - 1);
        for (int r = 0; r < R; ++r) {
            const __m512i* const of = sums.of[r][0];
            const __m512 low = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(of[1], 8), of[2]));
            const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(of[0]), factor, low);
            const __m512 scale = _mm512_permutexvar_ps(
                lane.of_lane, _mm512_maskz_loadu_ps(there, scales + r * groups + first));
            totals[r] = _mm512_fmadd_ps(scale, sum, totals[r]);
        }
        if (--blocks_left == 0) {
            first += lane.in_block == 0 ? 1 : lane.in_block;
            blocks_left = lane.blocks_of_group;
        }
    }
    const double step = level_step(weight.grid), lowest = lowest_level(weight.grid);
    for (int r = 0; r < R; ++r) {
        // The chains of four sums run side by side.
        __m256d offsets = _mm256_setzero_pd();
        const double* const x_sums = product.x.group_sums + m * groups;
        int64_t g = 0;
        for (; g + 4 <= groups; g += 4)
            offsets = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(scales + r * groups + g)),
                                      _mm256_loadu_pd(x_sums + g), offsets);
        const __m128d pairs = _mm_add_pd(_mm256_castpd256_pd128(offsets), _mm256_extractf128_pd(offsets, 1));
        double offset = _mm_cvtsd_f64(_mm_add_sd(pairs, _mm_unpackhi_pd(pairs, pairs)));
        for (; g < groups; ++g) offset += static_cast<double>(scales[r * groups + g]) * x_sums[g];
        const double sum = step * static_cast<double>(_mm512_reduce_add_ps(totals[r])) + lowest * offset;
        product.y[m * weight.rows + n + r] =
            static_cast<float>(static_cast<double>(product.x.scales[m]) * sum);
    }
}

template <int bits>
TRAIN_QAT_VNNI void group_products(const CodeProduct& product, int64_t first, int64_t last) {
    const LaneGroups groups = lane_groups(product.x.group, 8 / bits);
    for (int64_t m = 0; m < product.x.rows; ++m) {
        int64_t n = first;
        for (; n + 4 <= last; n += 4) group_tile<bits, 4>(product, n, m, groups);
        for (; n < last; ++n) group_tile<bits, 1>(product, n, m, groups);
    }
}

template <int bits>
CodeProductFunction function_for(int64_t columns, int64_t group) {
    constexpr int64_t in_byte = 8 / bits, block_columns = block_bytes * in_byte;
    if (group == columns) return row_products<bits>;
    const bool fits = group < block_columns ? block_columns % group == 0 && group % (4 * in_byte) == 0
                                            : group % block_columns == 0;
    return fits ? group_products<bits> : nullptr;
}

}  // namespace

CodeProductFunction vnni_code_product(int bits, int64_t columns, int64_t group) {
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return nullptr;
    switch (bits) {
        case 1:
            return function_for<1>(columns, group);
        case 2:
            return function_for<2>(columns, group);
        case 4:
            return function_for<4>(columns, group);
        default:
            return function_for<8>(columns, group);
    }
}

}  // namespace train_qat

#else

namespace train_qat {

CodeProductFunction vnni_code_product(int, int64_t, int64_t) {
    return nullptr;
}

}  // namespace train_qat

#endif
