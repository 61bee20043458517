// Products of packed codes with numbers in fixed point:
//     y[m,n] = scale_x[m] * sum over groups g of s[n,g] (level_step * D[m,n,g] + lowest_level * S[m,g])
// with D the sum of code times number and S the sum of numbers, both whole numbers and exact.
#pragma once

#include <cstdint>

#include "kernels/cpu/generation/fixed_point.h"
#include "kernels/generation_operations.h"

namespace train_qat {

struct CodeProduct {
    const PackedMatrix* weight = nullptr;
    FixedPointRows x;
    float* y = nullptr;  // (M, N)
};

// Writes y of the outputs [first, last), for all M.
using CodeProductFunction = void (*)(const CodeProduct& product, int64_t first, int64_t last);

// Plain C++, for every processor.
CodeProductFunction portable_code_product(int bits);
// With AVX512-VNNI: null where the processor lacks it, or a group does not fit its registers.
CodeProductFunction vnni_code_product(int bits, int64_t columns, int64_t group);

// Longer sums of products of bytes could leave the range of int32.
constexpr int64_t most_summed_columns = 65536;

}  // namespace train_qat
