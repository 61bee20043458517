// Matmuls of dense operands. All matrices are row-major; element types are compute types, the same for both operands,
// and for `out` also float32.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/platform/device.h"
#include "kernels/tensor.h"

namespace train_qat::CU_BACKEND {

enum class MatmulForm : uint8_t {
    nt,  // out (M, N) = a (M, K) bᵀ,  b (N, K)
    nn,  // out (M, K) = a (M, N) b,   b (N, K)
    tn,  // out (N, K) = aᵀ b,         a (M, N), b (M, K)
};

class DenseMatmul {
  public:
    virtual ~DenseMatmul() = default;
    virtual const char* name() const = 0;  // for people
    // out = the product, or += it, with float32 only.
    virtual void multiply(MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                          bool accumulate) = 0;
};

// cuBLASLt where this program is built with it (cublaslt_matmul.cu), else our own kernels (own_matmul.cu). `device` outlives the
// result.
std::unique_ptr<DenseMatmul> make_dense_matmul(Device& device);

// ---- our own kernels

// How much of the product a block of the tensor-core kernels computes (tile_matmul.cuh).
enum class TileSize : uint8_t { automatic, large, small };

// By the operands' type, one of:
void own_matmul(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                bool accumulate);

// Tensor cores; out: bfloat16 or float32.
void matmul_bfloat16(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                     bool accumulate, TileSize size = TileSize::automatic);
// out: float32.
void matmul_float32(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                    bool accumulate);

}  // namespace train_qat::CU_BACKEND
