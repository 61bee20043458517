// Normal random numbers as a function of their place: the first weights of a model.
#pragma once

#include <cstdint>

namespace train_qat {

// One endless sequence of normal numbers for every seed and stream.
struct NormalSequence {
    uint64_t seed = 0;
    uint32_t stream = 0;  // a parameter's number
    float deviation = 1;  // the mean is zero
};

// Elements [first, first + count) of the sequence into `values`, by all threads of OpenMP. An element depends
// on the sequence and its index alone: not on the number of threads, on which other elements are asked for, or
// on the machine.
void fill_normal(float* values, int64_t first, int64_t count, const NormalSequence& sequence);

}  // namespace train_qat
