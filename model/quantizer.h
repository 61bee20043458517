// Which grid a number of bits means, and the constants of its gradient.
#pragma once

#include <cstdint>

#include "kernels/grid.h"

namespace train_qat {

struct QuantizationConfig {
    double bits = 16;   // 1, 1.58, 2, 3, 4, 5, 6, 8; 16: no quantization
    int64_t group = 0;  // weights of a row that share a scale: 32, 64, 128; 0: the whole row
    // Of the weight matrices that the optimizer keeps. bfloat16: it rounds each step's weights
    // stochastically.
    DType master_type = DType::float32;

    bool enabled() const { return bits < 16; }
};

// The grid of the block linears. Throws std::runtime_error naming -b for any other number of bits.
Grid grid_of_bits(double bits);

// The embedding is also the LM head: below 4 bits it costs more loss than it saves memory (arXiv 2502.02631
// keeps it at higher precision), so it has max(bits, 4).
double embedding_bits(double bits);

// LSQ's gradient scale g = 1 / sqrt(n * Q_p) (arXiv 1902.08153); n: number of weights of the whole matrix, as
// ParetoQ (arXiv 2502.02631) takes it also for one scale per row.
float scale_gradient_factor(Grid grid, int64_t weights);

}  // namespace train_qat
