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

// The sum of codes times numbers that 3 * 16 sums stand for.
TRAIN_QAT_VNNI_INLINE int64_t total_of(const __m512i* sums) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i high_and_middle =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
    const __m512i low =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], zero), _mm512_unpackhi_epi32(sums[2], zero));
    const __m512i quarters = _mm512_add_epi32(_mm512_unpacklo_epi64(high_and_middle, low),
                                              _mm512_unpackhi_epi64(high_and_middle, low));
    const __m256i halves =
        _mm256_add_epi32(_mm512_castsi512_si256(quarters), _mm512_extracti64x4_epi64(quarters, 1));
    const __m128i pieces = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    alignas(16) int32_t piece[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(piece), pieces);
    return (int64_t{piece[0]} << 16) + (int64_t{piece[1]} << 8) + piece[2];
}

// One scale per row: y of the outputs [n, n + R) for the rows [m, m + M).
template <int bits, int R, int M>
TRAIN_QAT_VNNI_INLINE void row_tile(const CodeProduct& product, int64_t n, int64_t m) {
    const PackedMatrix& weight = *product.weight;
    const auto* const codes =
        static_cast<const uint8_t*>(weight.message.numbers) + n * weight.message.row_bytes;
    constexpr int64_t most_blocks = most_summed_columns / (block_bytes * (8 / bits));
    const int64_t blocks = product.x.blocks();
    int64_t totals[R][M] = {};
    for (int64_t first = 0; first < blocks; first += most_blocks) {
        Sums<R, M> sums;
        clear(sums);
        add_blocks<bits>(sums, product, codes, m, first,
                         first + most_blocks < blocks ? first + most_blocks : blocks);
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < M; ++i) totals[r][i] += total_of(sums.of[r][i]);
    }
    const double step = level_step(weight.grid), lowest = lowest_level(weight.grid);
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < M; ++i) {
            const double sum =
                step * static_cast<double>(totals[r][i]) + lowest * product.x.group_sums[m + i];
            product.y[(m + i) * weight.rows + n + r] = static_cast<float>(
                static_cast<double>(product.x.scales[m + i]) * (weight.message.scales[n + r] * sum));
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

// The scales of the 16 sums of a block: neighbouring sums share one, or all do.
TRAIN_QAT_VNNI_INLINE __m512 lane_scales(const float* scales, int64_t group, int64_t block,
                                         int64_t block_columns, int64_t groups, __m512i lane_group) {
    const int64_t first = block * block_columns / group;
    if (group >= block_columns) return _mm512_set1_ps(scales[first]);
    const int64_t here = block_columns / group, left = groups - first;
    const __mmask16 there = static_cast<__mmask16>((1u << (left < here ? left : here)) - 1);
    return _mm512_permutexvar_ps(lane_group, _mm512_maskz_loadu_ps(there, scales + first));
}

// Several scales per row: sums of a block become float32, times their scales.
template <int bits, int R>
TRAIN_QAT_VNNI_INLINE void group_tile(const CodeProduct& product, int64_t n, int64_t m, __m512i lane_group) {
    constexpr int64_t block_columns = block_bytes * (8 / bits);
    const PackedMatrix& weight = *product.weight;
    const int64_t groups = product.x.groups(), group = product.x.group;
    const auto* const codes =
        static_cast<const uint8_t*>(weight.message.numbers) + n * weight.message.row_bytes;
    __m512 totals[R];
    for (int r = 0; r < R; ++r) totals[r] = _mm512_setzero_ps();
    const __m512 factor = _mm512_set1_ps(65536.0f);
    for (int64_t block = 0; block < product.x.blocks(); ++block) {
        Sums<R, 1> sums;
        clear(sums);
        add_blocks<bits>(sums, product, codes, m, block, block + 1);
        for (int r = 0; r < R; ++r) {
            const __m512i* const of = sums.of[r][0];
            const __m512 low = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(of[1], 8), of[2]));
            const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(of[0]), factor, low);
            const __m512 scales = lane_scales(weight.message.scales + (n + r) * groups, group, block,
                                              block_columns, groups, lane_group);
            totals[r] = _mm512_fmadd_ps(scales, sum, totals[r]);
        }
    }
    const double step = level_step(weight.grid), lowest = lowest_level(weight.grid);
    for (int r = 0; r < R; ++r) {
        double offset = 0;
        for (int64_t g = 0; g < groups; ++g)
            offset += weight.message.scales[(n + r) * groups + g] * product.x.group_sums[m * groups + g];
        const double sum = step * static_cast<double>(_mm512_reduce_add_ps(totals[r])) + lowest * offset;
        product.y[m * weight.rows + n + r] =
            static_cast<float>(static_cast<double>(product.x.scales[m]) * sum);
    }
}

template <int bits>
TRAIN_QAT_VNNI void group_products(const CodeProduct& product, int64_t first, int64_t last) {
    alignas(64) int32_t lane_group[lanes];
    for (int lane = 0; lane < lanes; ++lane)
        lane_group[lane] = static_cast<int32_t>(lane * 4 * (8 / bits) / product.x.group);
    const __m512i of_lane = _mm512_load_si512(lane_group);
    for (int64_t m = 0; m < product.x.rows; ++m) {
        int64_t n = first;
        for (; n + 4 <= last; n += 4) group_tile<bits, 4>(product, n, m, of_lane);
        for (; n < last; ++n) group_tile<bits, 1>(product, n, m, of_lane);
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
