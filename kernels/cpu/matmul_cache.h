// oneDNN matmuls, created once per shape and kept: creating one takes up to a millisecond, running it less
// than a microsecond beyond the arithmetic.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels/tensor.h"

namespace train_qat {

// Whether this CPU multiplies bfloat16 tiles (AMX).
bool cpu_has_amx_bfloat16();

// The inner dimension with which a matmul is given to oneDNN. Its AMX kernels of 2.6 and 2.7 execute an illegal
// instruction where the inner dimension leaves a remainder of 32, the depth of a tile (seen at 63; oneDNN's issue
// 1661), and read beyond the matrix there (issue 5717). So with AMX both operands get zeros up to the next multiple.
int64_t padded_inner(bool amx, DType dtype, int64_t inner);

class MatmulCache {
  public:
    MatmulCache(int threads, bool amx);

    // Whether oneDNN has matmuls of this dtype: ONEDNN_MAX_CPU_ISA may keep it from instructions that the CPU has.
    bool supports(DType dtype) const;

    // The layout in which oneDNN wants the right operand, (inner, columns), of a matmul: blocked, padded, and
    // independent of the number of rows on the left.
    const dnnl::memory::desc& packed_layout(DType dtype, int64_t inner, int64_t columns);

    // Where that layout keeps element (i, j): at inner_offsets[i] + column_offsets[j]. (A blocked layout
    // splits each index into digits of its own, so the offset is a sum.) The tables go on to the layout's
    // padded extents; what lies beyond the matrix must be zero.
    struct PackedOffsets {
        std::vector<int64_t> inner, columns;
    };
    const PackedOffsets& packed_offsets(DType dtype, int64_t inner, int64_t columns);

    // y (rows, columns) = x (rows, inner) * packed (inner, columns).
    void multiply_packed(void* y, DType y_dtype, const void* x, const void* packed, DType dtype, int64_t rows,
                         int64_t inner, int64_t columns);

    // y (rows, columns) float32 (+)= aᵀ b; a: (inner, rows), b: (inner, columns). Packs b once first: inside
    // the matmul every block of rows would pack it again, which costs 2 to 11%.
    void multiply_transposed(float* y, const void* a, const void* b, DType dtype, int64_t rows, int64_t inner,
                             int64_t columns, bool accumulate);

  private:
    struct Matmul {
        dnnl::matmul primitive;
        dnnl::memory source, weights, destination;
        std::unordered_map<int, dnnl::memory> arguments;
    };
    struct Packing {
        dnnl::reorder primitive;
        dnnl::memory source, destination;
    };
    struct alignas(64) CacheLine {
        char bytes[64];
    };
    using Staging = std::vector<CacheLine>;
    // (rows, columns) row-major with zeros after it: up to (padded_rows, padded_columns).
    const void* padded_copy(Staging& staging, const void* source, int64_t element, int64_t rows,
                            int64_t columns, int64_t padded_rows, int64_t padded_columns);
    const void* packed_copy(const void* source, DType dtype, int64_t inner, int64_t columns);
    // The left operand (rows, inner): as it is, or the transpose of what is in memory.
    enum class Form { plain, transposed, transposed_accumulating };
    Matmul& find_matmul(Form form, DType dtype, DType y_dtype, int64_t rows, int64_t inner, int64_t columns);
    void use_threads();
    Matmul make_matmul(const dnnl::memory::desc& source, const dnnl::memory::desc& weights,
                       const dnnl::memory::desc& destination, bool accumulate);
    void run(Matmul& matmul, void* y, const void* x, const void* weights);

    int threads_;
    bool amx_;
    dnnl::engine engine_;
    dnnl::stream stream_;
    std::map<std::tuple<DType, int64_t, int64_t>, dnnl::memory::desc> layouts_;
    std::map<std::tuple<DType, int64_t, int64_t>, PackedOffsets> offsets_;
    std::map<std::tuple<DType, int64_t, int64_t>, Packing> packings_;
    Staging packed_right_;                // the right operand of multiply_transposed
    Staging padded_left_, padded_right_;  // operands whose inner dimension is padded
    // Form, dtypes of operands and result, rows, inner, columns.
    std::map<std::tuple<Form, DType, DType, int64_t, int64_t, int64_t>, Matmul> matmuls_;
};

}  // namespace train_qat
