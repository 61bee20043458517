// The quantization grids: which levels a weight can take, how a weight is rounded to a level, and the
// straight-through gradient. One small struct of constants and pure functions per grid; a kernel takes the
// grid as a template parameter, so the inner loop holds no branch on the number of bits.
//
// A weight w with scale s is stored as the level q (a small number, exact in bfloat16 and int8) and used as
// s*q. Grids and gradients: ParetoQ (arXiv 2502.02631) and LSQ (arXiv 1902.08153).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernels/tensor.h"

namespace train_qat {

enum class Grid : uint8_t {
    none,        // full precision: the weight itself
    binary,      // -1 +1
    ternary,     // -1 0 +1
    quaternary,  // -1.5 -0.5 +0.5 +1.5
    integer3,    // -4 ... 3
    integer4,    // -8 ... 7
    integer5,    // -16 ... 15
    integer6,    // -32 ... 31
    integer8,    // -128 ... 127
};

// Scales never fall below this (ParetoQ); it also keeps them representable in float16.
inline constexpr float smallest_scale = 1e-5f;

// `value` rounded to IEEE float16 (nearest, ties to even) and widened again: the scale that training uses is
// the scale that an export can store. Expects 0 <= value; saturates at 65504.
TRAIN_QAT_HOST_DEVICE inline float round_to_float16(float value) {
    if (!(value <= 65504.0f)) return value > 65504.0f ? 65504.0f : value;  // a NaN stays one
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    if (value < 6.103515625e-05f) {
        // Below 2^-14 float16 is a fixed-point number with unit 2^-24: adding 0.5 = 2^23 * 2^-24 makes the
        // float adder do exactly that rounding.
        return (value + 0.5f) - 0.5f;
    }
    word += 0x0fffu + ((word >> 13) & 1u);
    word &= 0xffffe000u;
    std::memcpy(&value, &word, sizeof word);
    return value;
}

// The scale as the forward pass uses it.
TRAIN_QAT_HOST_DEVICE inline float effective_scale(float scale) {
    return round_to_float16(scale < smallest_scale ? smallest_scale : scale);  // a NaN stays one
}

// How the first scale of a group of weights is found, as a multiple of a statistic of that group.
enum class ScaleStatistic : uint8_t { mean_absolute, max_absolute };

// For every grid, with r = w / s:
//   level(r)           the level q; s*q replaces w in the forward pass
//   inside(r)          whether the straight-through estimator passes the gradient: dw = inside ? dŵ : 0
//   scale_gradient(r)  dŵ/ds of one element: q - r inside the clipping range, the clip level outside
//   positive_levels    Q_p of LSQ's gradient factor g = 1 / sqrt(n * Q_p)
//   statistic, divisor initial s = statistic(w) / divisor

template <int bits>
struct IntegerGrid {  // LSQ: s * clamp(round(w/s), -2^(b-1), 2^(b-1) - 1)
    static constexpr float lowest = -static_cast<float>(1 << (bits - 1));
    static constexpr float highest = static_cast<float>((1 << (bits - 1)) - 1);
    static constexpr float positive_levels = highest;
    static constexpr ScaleStatistic statistic = ScaleStatistic::max_absolute;
    static constexpr float divisor = highest;
    TRAIN_QAT_HOST_DEVICE static float clamp(float r) {
        return r < lowest ? lowest : (r > highest ? highest : r);
    }
    TRAIN_QAT_HOST_DEVICE static float level(float r) { return rintf(clamp(r)); }
    TRAIN_QAT_HOST_DEVICE static bool inside(float r) { return r >= lowest && r <= highest; }
    TRAIN_QAT_HOST_DEVICE static float scale_gradient(float r) {
        // Outside, level(r) is the clip level itself and nothing is subtracted.
        return level(r) - (inside(r) ? r : 0.0f);
    }
};

// Stretched elastic quantization: alpha * (round(clamp(w/alpha, ±0.99) * n - shift) + shift) / n. With s =
// alpha / n and r = w/s the clipping range is ±0.99 n and the levels are round(clamp(r) - shift) + shift. The
// 0.99 keeps the topmost value from rounding to a level that does not exist.
template <int twice_levels, int twice_shift>
struct StretchedElasticGrid {
    static constexpr float half_range = 0.5f * twice_levels;  // n
    static constexpr float shift = 0.5f * twice_shift;
    static constexpr float clip = 0.99f * half_range;
    static constexpr float positive_levels = 1.0f;
    static constexpr ScaleStatistic statistic = ScaleStatistic::max_absolute;
    static constexpr float divisor = half_range;
    TRAIN_QAT_HOST_DEVICE static float level(float r) {
        const float clamped = r < -clip ? -clip : (r > clip ? clip : r);
        return rintf(clamped - shift) + shift;
    }
    TRAIN_QAT_HOST_DEVICE static bool inside(float r) { return r >= -clip && r <= clip; }
    TRAIN_QAT_HOST_DEVICE static float scale_gradient(float r) { return level(r) - (inside(r) ? r : 0.0f); }
};

struct BinaryGrid {  // s * sign(w), sign(0) = +1
    static constexpr float positive_levels = 1.0f;
    static constexpr ScaleStatistic statistic = ScaleStatistic::mean_absolute;
    static constexpr float divisor = 1.0f;
    // A NaN stays one: it must reach the gradient norm, where the run stops.
    TRAIN_QAT_HOST_DEVICE static float level(float r) { return r >= 0.0f ? 1.0f : (r < 0.0f ? -1.0f : r); }
    TRAIN_QAT_HOST_DEVICE static bool inside(float r) { return r >= -1.0f && r <= 1.0f; }
    TRAIN_QAT_HOST_DEVICE static float scale_gradient(float r) { return level(r); }
};

template <Grid grid>
struct GridTraits;
template <>
struct GridTraits<Grid::binary> : BinaryGrid {};
template <>
struct GridTraits<Grid::ternary> : StretchedElasticGrid<3, 0> {};
template <>
struct GridTraits<Grid::quaternary> : StretchedElasticGrid<4, 1> {};
template <>
struct GridTraits<Grid::integer3> : IntegerGrid<3> {};
template <>
struct GridTraits<Grid::integer4> : IntegerGrid<4> {};
template <>
struct GridTraits<Grid::integer5> : IntegerGrid<5> {};
template <>
struct GridTraits<Grid::integer6> : IntegerGrid<6> {};
template <>
struct GridTraits<Grid::integer8> : IntegerGrid<8> {};

// Calls function.template operator()<grid>() for the run-time value `grid`: the one place where the number of
// bits becomes a compile-time parameter.
template <typename Function>
decltype(auto) with_grid(Grid grid, Function&& function) {
    switch (grid) {
        case Grid::none:
            return function.template operator()<Grid::none>();
        case Grid::binary:
            return function.template operator()<Grid::binary>();
        case Grid::ternary:
            return function.template operator()<Grid::ternary>();
        case Grid::quaternary:
            return function.template operator()<Grid::quaternary>();
        case Grid::integer3:
            return function.template operator()<Grid::integer3>();
        case Grid::integer4:
            return function.template operator()<Grid::integer4>();
        case Grid::integer5:
            return function.template operator()<Grid::integer5>();
        case Grid::integer6:
            return function.template operator()<Grid::integer6>();
        case Grid::integer8:
            return function.template operator()<Grid::integer8>();
    }
    throw std::logic_error("with_grid: not a grid");
}

}  // namespace train_qat
