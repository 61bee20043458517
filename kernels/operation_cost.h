// What an operation takes at least, for profiles.
#pragma once

#include <initializer_list>

#include "kernels/tensor.h"

namespace train_qat {

struct OperationCost {
    double flops = 0;  // a multiply-add counts as two
    double bytes = 0;  // read and written
};

// Of all that are there.
inline double sum_of_bytes(std::initializer_list<Tensor> tensors) {
    double sum = 0;
    for (const Tensor& tensor : tensors) sum += static_cast<double>(tensor.bytes());
    return sum;
}

}  // namespace train_qat
