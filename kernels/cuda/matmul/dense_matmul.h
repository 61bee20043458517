// Matmuls of dense operands: cuBLASLt on a GPU (cublaslt_matmul.cu), our own kernels where that library is
// missing and in the emulator (own_matmul.cu).
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/platform/runtime.h"
#include "kernels/cuda/platform/tuning_table.h"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

// Row-major matrices; element types are compute types (both operands the same) and, for `out`, also float32.
class DenseMatmul {
  public:
    virtual ~DenseMatmul() = default;
    // out (M, N) = a (M, K) bᵀ, b (N, K)
    virtual void multiply_nt(const Tensor& out, const Tensor& a, const Tensor& b) = 0;
    // out (M, K) = a (M, N) b, b (N, K)
    virtual void multiply_nn(const Tensor& out, const Tensor& a, const Tensor& b) = 0;
    // out (N, K) float32 (+)= aᵀ b, a (M, N), b (M, K)
    virtual void multiply_tn(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) = 0;
};

std::unique_ptr<DenseMatmul> make_own_matmul(Runtime& runtime);
// Only where built with cuBLASLt. `table` outlives the result.
std::unique_ptr<DenseMatmul> make_cublaslt_matmul(Runtime& runtime, TuningTable& table);

}  // namespace train_qat::CU_BACKEND
