// Number formats, grids, optimizer and matmuls; the layers are in reference_layers.cpp.
#include "test/support/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace train_qat::reference {

// ---- number formats

double round_to_format(double value, int fraction_bits, int least_exponent) {
    if (value == 0 || !std::isfinite(value)) return value;
    const int exponent = std::max(std::ilogb(value), least_exponent);
    const double unit = std::ldexp(1.0, exponent - fraction_bits);
    const double lower = std::floor(value / unit);  // exact: unit is a power of two
    const double remainder = value / unit - lower;
    const bool up = remainder > 0.5 || (remainder == 0.5 && std::fmod(lower, 2.0) != 0);
    return (lower + (up ? 1.0 : 0.0)) * unit;
}

double round_to_bfloat16(double value) {
    const double result = round_to_format(value, 7, -126);
    return std::abs(result) >= std::ldexp(1.0, 128) ? std::copysign(HUGE_VAL, value) : result;
}

double round_to_float16(double value) {
    return std::min(round_to_format(value, 10, -14), 65504.0);
}

double round_to(DType dtype, double value) {
    return dtype == DType::bfloat16 ? round_to_bfloat16(value)
                                    : static_cast<double>(static_cast<float>(value));
}

Array rounded(DType dtype, Array values) {
    for (double& value : values) value = round_to(dtype, value);
    return values;
}

double unit_in_last_place(DType dtype, double value) {
    const int exponent = value == 0 ? -126 : std::max(std::ilogb(value), -126);
    return std::ldexp(1.0, exponent - (dtype == DType::bfloat16 ? 7 : 23));
}

// ---- quantization grids

const std::vector<Grid>& quantized_grids() {
    static const std::vector<Grid> grids = {Grid::binary,   Grid::ternary,  Grid::quaternary, Grid::integer3,
                                            Grid::integer4, Grid::integer5, Grid::integer6,   Grid::integer8};
    return grids;
}

const char* name_of(Grid grid) {
    switch (grid) {
        case Grid::none:
            return "none";
        case Grid::binary:
            return "binary";
        case Grid::ternary:
            return "ternary";
        case Grid::quaternary:
            return "quaternary";
        case Grid::integer3:
            return "integer3";
        case Grid::integer4:
            return "integer4";
        case Grid::integer5:
            return "integer5";
        case Grid::integer6:
            return "integer6";
        case Grid::integer8:
            return "integer8";
    }
    return "unknown";
}

static GridTable integer_table(int lowest, int highest) {
    GridTable table{{}, double(lowest), double(highest), 0, double(highest), false, double(highest)};
    for (int level = lowest; level <= highest; ++level) table.levels.push_back(level);
    return table;
}

GridTable table_of(Grid grid) {
    // The clip of a stretched grid is 0.99 n in float32 arithmetic, as is everything that decides about a
    // level.
    const double ternary_clip = 0.99f * 1.5f, quaternary_clip = 0.99f * 2.0f;
    switch (grid) {
        case Grid::binary:
            return {{-1, 1}, -1, 1, 0, 1, true, 1};
        case Grid::ternary:
            return {{-1, 0, 1}, -ternary_clip, ternary_clip, 0, 1, false, 1.5};
        case Grid::quaternary:
            return {{-1.5, -0.5, 0.5, 1.5}, -quaternary_clip, quaternary_clip, 0.5, 1, false, 2};
        case Grid::integer3:
            return integer_table(-4, 3);
        case Grid::integer4:
            return integer_table(-8, 7);
        case Grid::integer5:
            return integer_table(-16, 15);
        case Grid::integer6:
            return integer_table(-32, 31);
        case Grid::integer8:
            return integer_table(-128, 127);
        case Grid::none:
            break;
    }
    throw std::logic_error("reference::table_of: no grid");
}

float ratio(double weight, double effective_scale) {
    return static_cast<float>(weight) / static_cast<float>(effective_scale);
}

double effective_scale(double scale) {
    return round_to_float16(std::max(scale, static_cast<double>(1e-5f)));
}

double level(Grid grid, float r) {
    if (grid == Grid::binary) return r < 0 ? -1 : 1;
    const GridTable table = table_of(grid);
    const double clamped = std::min(std::max(static_cast<double>(r), table.clip_low), table.clip_high);
    // The subtraction rounds to float32, so that a tiny negative r is a tie of the quaternary grid.
    const double t = static_cast<float>(clamped - table.shift);
    double nearest = std::floor(t);
    const double remainder = t - nearest;
    if (remainder > 0.5 || (remainder == 0.5 && std::fmod(nearest, 2.0) != 0)) nearest += 1;
    return nearest + table.shift;
}

bool inside(Grid grid, float r) {
    const GridTable table = table_of(grid);
    return table.clip_low <= r && r <= table.clip_high;
}

double scale_gradient(Grid grid, float r) {
    if (grid == Grid::binary) return level(grid, r);
    return inside(grid, r) ? level(grid, r) - r : level(grid, r);
}

QuantizedMatrix quantize(Grid grid, int64_t rows, int64_t columns, int64_t group, const Array& master,
                         const Array& scale, DType compute_type) {
    QuantizedMatrix result;
    if (grid == Grid::none) {
        result.q = rounded(compute_type, master);
        return result;
    }
    result.q.resize(rows * columns);
    const bool scale_leaves_sum = group == columns;
    if (scale_leaves_sum)
        for (double s : scale) result.row_scale.push_back(effective_scale(s));
    for (int64_t i = 0; i < rows * columns; ++i) {
        const double s = effective_scale(scale[i / group]);
        const double q = level(grid, ratio(master[i], s));
        result.q[i] = scale_leaves_sum ? q : round_to(compute_type, s * q);
    }
    return result;
}

Array initial_scales(Grid grid, int64_t rows, int64_t columns, int64_t group, const Array& master) {
    const GridTable table = table_of(grid);
    Array scales(rows * columns / group);
    for (size_t i = 0; i < scales.size(); ++i) {
        double sum = 0, maximum = 0;
        for (int64_t j = 0; j < group; ++j) {
            const double absolute = std::abs(master[i * group + j]);
            sum += absolute;
            maximum = std::max(maximum, absolute);
        }
        const double statistic = table.mean_absolute ? sum / static_cast<double>(group) : maximum;
        scales[i] = std::max(statistic / table.divisor, static_cast<double>(1e-5f));
    }
    return scales;
}

StraightThrough straight_through_backward(Grid grid, int64_t rows, int64_t columns, int64_t group,
                                          double factor, const Array& master, const Array& scale,
                                          const Array& dq) {
    StraightThrough result;
    result.gradient = dq;
    if (grid != Grid::none) {
        result.scale_gradient = Result(rows * columns / group);
        for (int64_t i = 0; i < rows * columns; ++i) {
            const double s = effective_scale(scale[i / group]);
            const float r = ratio(master[i], s);
            const double dw = group == columns ? dq[i] / s : dq[i];
            result.gradient[i] = inside(grid, r) ? dw : 0;
            result.scale_gradient.add(i / group, factor * dw * scale_gradient(grid, r));
        }
    }
    result.squares =
        dot(result.gradient, result.gradient) + dot(result.scale_gradient.value, result.scale_gradient.value);
    return result;
}

Array scale_columns(Array values, const Array& column_scale) {
    if (column_scale.empty()) return values;
    for (size_t i = 0; i < values.size(); ++i) values[i] *= column_scale[i % column_scale.size()];
    return values;
}

// ---- optimizer

void adamw(AdamWState& state, const Array& gradient, const AdamWArguments& a) {
    const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
    const double correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
    for (size_t i = 0; i < gradient.size(); ++i) {
        const double g = gradient[i] * a.clip_factor;
        double& m = state.first_moment[i];
        double& v = state.second_moment[i];
        m = a.beta1 * m + (1 - a.beta1) * g;
        v = a.beta2 * v + (1 - a.beta2) * g * g;
        const double update = m / correction1 / (std::sqrt(v / correction2) + a.epsilon);
        state.value[i] -= a.learning_rate *
                          ((a.relative ? state.value[i] : 1.0) * update + a.weight_decay * state.value[i]);
    }
}

// ---- matmuls and embedding

Result matmul_forward(const Array& x, const QuantizedMatrix& weight, int64_t M, int64_t N, int64_t K) {
    Result y(M * N);
    for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n)
            for (int64_t k = 0; k < K; ++k) y.add(m * N + n, x[m * K + k] * weight.q[n * K + k]);
    return y;
}

Result matmul_input_gradient(const Array& dz, const Array& q, int64_t M, int64_t N, int64_t K) {
    Result dx(M * K);
    for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n)
            for (int64_t k = 0; k < K; ++k) dx.add(m * K + k, dz[m * N + n] * q[n * K + k]);
    return dx;
}

Result matmul_weight_gradient(const Array& dz, const Array& x, const Array& initial, int64_t M, int64_t N,
                              int64_t K) {
    Result dq(N * K);
    for (size_t i = 0; i < initial.size(); ++i) dq.add(static_cast<int64_t>(i), initial[i]);
    for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n)
            for (int64_t k = 0; k < K; ++k) dq.add(n * K + k, dz[m * N + n] * x[m * K + k]);
    return dq;
}

Result embedding_backward(const Array& dq, const Array& dy, const Array& tokens, const Array& row_scale,
                          int64_t C) {
    Result result(static_cast<int64_t>(dq.size()));
    for (size_t i = 0; i < dq.size(); ++i) result.add(static_cast<int64_t>(i), dq[i]);
    for (size_t m = 0; m < tokens.size(); ++m) {
        const auto token = static_cast<int64_t>(tokens[m]);
        const double s = row_scale.empty() ? 1.0 : row_scale[token];
        for (int64_t c = 0; c < C; ++c) result.add(token * C + c, s * dy[m * C + c]);
    }
    return result;
}

// ---- checks of the oracles themselves

Array numerical_gradient(const std::function<double(const Array&)>& function, Array x, double step) {
    Array gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double kept = x[i];
        x[i] = kept + step;
        const double above = function(x);
        x[i] = kept - step;
        const double below = function(x);
        x[i] = kept;
        gradient[i] = (above - below) / (2 * step);
    }
    return gradient;
}

double dot(const Array& a, const Array& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

double relative_distance(const Array& a, const Array& b) {
    if (a.size() != b.size()) throw std::logic_error("reference::relative_distance: sizes differ");
    double squares = 0;
    for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(squares / std::max(dot(b, b), std::numeric_limits<double>::min()));
}

}  // namespace train_qat::reference
