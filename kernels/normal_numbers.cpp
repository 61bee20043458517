// Normal random numbers by Box and Muller's method ("A note on the generation of random normal deviates",
// 1958) from Philox's words (kernels/philox.h), 32 at a time so that the compiler vectorizes every step.
//
// Of the four words of a counter, the first two make one pair of normal numbers, the last two another:
//     radius = deviation sqrt(-2 ln u), u in (0, 1]     from 31 bits of the first word
//     pair   = radius (cos angle, sin angle)            angle: the second word in 2^-32 turns
// The smallest u is 2^-32, so no number is further than 6.67 deviations from zero; one of 4e10 would be.
//
// This file is compiled without contracting products and sums to fused ones (kernels/CMakeLists.txt), and
// uses no function of a mathematical library, whose last bits differ: so every machine draws the same.
#include "kernels/normal_numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/philox.h"

namespace train_qat {

namespace {

constexpr int counters = 32;  // of a block
constexpr int64_t block_elements = 4 * counters;

// ln x of a positive normal x, with a relative error below 2e-7. Method: x = 2^n m with m in
// [sqrt(1/2), sqrt(2)), ln x = n ln 2 + ln m, and ln m by the polynomial of Cephes' logf (Moshier).
inline float logarithm(float x) {
    constexpr int32_t bits_of_root_half = 0x3f3504f3;
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const int32_t n = (bits - bits_of_root_half) >> 23;
    bits -= n * (1 << 23);
    float m;
    std::memcpy(&m, &bits, sizeof m);
    const float r = m - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    constexpr float ln2_high = 0.693359375f;  // nine bits: n * ln2_high is exact
    constexpr float ln2_low = -2.12194440e-4f;
    const float squared = r * r, exponent = static_cast<float>(n);
    return exponent * ln2_high + (r + (squared * r * p - 0.5f * squared + exponent * ln2_low));
}

struct Direction {
    float cosine, sine;
};

// Of the angle 2 pi turn / 2^32, each within 2e-7. Method: the nearest quarter turn, and from there at most
// pi/4 by the polynomials of Cephes' sinf and cosf.
inline Direction direction(uint32_t turn) {
    const uint32_t quarter = (turn + (1u << 29)) >> 30;
    constexpr float radians = 1.46291807926715968e-9f;  // 2 pi / 2^32
    const float x = static_cast<float>(static_cast<int32_t>(turn - (quarter << 30))) * radians;
    const float squared = x * x;
    float sine = -1.9515295891e-4f;
    sine = sine * squared + 8.3321608736e-3f;
    sine = sine * squared - 1.6666654611e-1f;
    sine = sine * squared * x + x;
    float cosine = 2.443315711809948e-5f;
    cosine = cosine * squared - 1.388731625493765e-3f;
    cosine = cosine * squared + 4.166664568298827e-2f;
    cosine = cosine * squared * squared - 0.5f * squared + 1.0f;
    const bool swapped = (quarter & 1u) != 0;
    const float along = swapped ? sine : cosine, across = swapped ? cosine : sine;
    const bool left = ((quarter + 1u) & 2u) != 0, below = (quarter & 2u) != 0;
    return {left ? -along : along, below ? -across : across};
}

// Elements [block * block_elements, (block + 1) * block_elements).
void fill_block(float* values, int64_t block, const NormalSequence& sequence) {
    uint32_t words[4][counters];
    const auto key0 = static_cast<uint32_t>(sequence.seed), key1 = static_cast<uint32_t>(sequence.seed >> 32);
    const uint64_t first = static_cast<uint64_t>(block) * counters;
    for (int i = 0; i < counters; ++i) {
        const uint64_t place = first + static_cast<uint64_t>(i);
        const Philox4 random = philox4x32(
            {{static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32), sequence.stream, 1u}}, key0,
            key1);
        for (int j = 0; j < 4; ++j) words[j][i] = random.word[j];
    }
    for (int pair = 0; pair < 2; ++pair)
        for (int i = 0; i < counters; ++i) {
            const float u =
                (static_cast<float>(static_cast<int32_t>(words[2 * pair][i] >> 1)) + 0.5f) * 0x1p-31f;
            const float radius = sequence.deviation * std::sqrt(-2.0f * logarithm(u));
            const Direction way = direction(words[2 * pair + 1][i]);
            values[4 * i + 2 * pair] = radius * way.cosine;
            values[4 * i + 2 * pair + 1] = radius * way.sine;
        }
}

}  // namespace

void fill_normal(float* values, int64_t first, int64_t count, const NormalSequence& sequence) {
    if (count <= 0) return;
    const int64_t end = first + count;
    const int64_t first_block = first / block_elements,
                  end_block = (end + block_elements - 1) / block_elements;
    // Not a static division: one thread whose core another program uses would hold up all.
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t block = first_block; block < end_block; ++block) {
        const int64_t block_begin = block * block_elements, block_end = block_begin + block_elements;
        if (first <= block_begin && block_end <= end) {
            fill_block(values + (block_begin - first), block, sequence);
            continue;
        }
        float all[block_elements];
        fill_block(all, block, sequence);
        const int64_t from = std::max(first, block_begin), to = std::min(end, block_end);
        std::copy(all + (from - block_begin), all + (to - block_begin), values + (from - first));
    }
}

}  // namespace train_qat
