// Tensors of a file by name, whole or divided among ranks by rows of their leading dimension.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/ranks/communicator.h"
#include "kernels/tensor.h"

namespace train_qat {

struct NamedTensor {
    std::string name;
    // The whole tensor, or with rows > 0 the part of this rank:
    //   * two dimensions and more: `tensor` holds rows [first_row, first_row + tensor.shape[0]) of `rows`;
    //     tensor.shape[0] may be 0, with or without memory.
    //   * one dimension: a vector is one row (rows = 1, first_row = 0), which is never split. `tensor` has
    //     its full shape on all ranks, and no memory (data = null) on those that do not hold it.
    // Over all ranks, the parts cover every row exactly once.
    Tensor tensor;
    int64_t first_row = 0;
    int64_t rows = 0;

    bool is_divided() const { return rows > 0; }
};

bool any_divided(std::span<const NamedTensor> tensors);

std::vector<int64_t> whole_shape(const NamedTensor& named);
int64_t whole_bytes(const NamedTensor& named);

// Rows of the whole tensor that a rank holds: all of them, when it is not divided.
struct RowRange {
    int64_t first = 0, count = 0;
    int64_t row_bytes = 0;
    int64_t offset() const { return first * row_bytes; }  // from the start of the tensor
    int64_t bytes() const { return count * row_bytes; }
};
RowRange rows_held(const NamedTensor& named);

// Rows that a rank answers for, by writing them or by their checksum. Tensors that are whole are on all
// ranks: rank 0 answers for them.
RowRange rows_answered_for(const NamedTensor& named, int rank);

// std::logic_error for a name that is used twice or is "__metadata__", a tensor without elements, or a part
// that is none.
void check_named_tensors(const char* caller, std::span<const NamedTensor> tensors);

// Collective, with tensors of the same names, dtypes and whole shapes on all ranks, in any order.
// std::logic_error on all ranks if some rows of a tensor are nobody's or are held twice.
void check_division(const char* caller, Communicator& communicator, std::span<const NamedTensor> tensors);

}  // namespace train_qat
