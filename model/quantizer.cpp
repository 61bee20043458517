#include "model/quantizer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {

Grid grid_of_bits(double bits) {
    if (bits == 16) return Grid::none;
    if (bits == 1) return Grid::binary;
    if (bits == 1.58) return Grid::ternary;
    if (bits == 2) return Grid::quaternary;
    if (bits == 3) return Grid::integer3;
    if (bits == 4) return Grid::integer4;
    if (bits == 5) return Grid::integer5;
    if (bits == 6) return Grid::integer6;
    if (bits == 8) return Grid::integer8;
    throw std::runtime_error(formatted(
        "-b %.6g: there is no grid of %.6g bits; choose 1, 1.58, 2, 3, 4, 5, 6, 8, or 16 for no QAT", bits,
        bits));
}

double embedding_bits(double bits) {
    return std::max(bits, 4.0);
}

float scale_gradient_factor(Grid grid, int64_t weights) {
    return with_grid(grid, [&]<Grid g>() {
        if constexpr (g == Grid::none)
            return 0.0f;
        else
            return static_cast<float>(
                1.0 / std::sqrt(static_cast<double>(weights) * GridTraits<g>::positive_levels));
    });
}

}  // namespace train_qat
