// The three products of a linear layer by oneDNN, for comparison: what a library's kernels reach on this machine.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <vector>

#include "kernels/tensor.h"

namespace train_qat {

class OneDnnMatmul {
  public:
    explicit OneDnnMatmul(DType dtype)
        : dtype_(dtype), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

    // y (rows, columns) = x (rows, inner) w, with w in the layout that oneDNN likes best (its numbers do not matter here:
    // zeros). Call prepare_rows once, then run().
    void prepare_rows(void* y, const void* x, int64_t rows, int64_t inner, int64_t columns);
    // y (rows, columns) float32 += aᵀ b; a (inner, rows), b (inner, columns). run() also lays out b, as every call of a
    // training step has to.
    void prepare_columns(float* y, const void* a, const void* b, int64_t rows, int64_t inner,
                         int64_t columns);
    void run();

  private:
    void prepare(void* y, dnnl::memory::data_type y_type, const void* x, const dnnl::memory::desc& source,
                 int64_t rows, int64_t inner, int64_t columns, bool accumulate);
    dnnl::memory::data_type type() const;
    dnnl::memory::desc matrix(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) const;

    DType dtype_;
    dnnl::engine engine_;
    dnnl::stream stream_;
    dnnl::matmul matmul_;
    dnnl::reorder packing_;
    bool packs_ = false;
    dnnl::memory source_, weights_, destination_, unpacked_;
};

// "2.6.3"
std::string onednn_version();

}  // namespace train_qat
