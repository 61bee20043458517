// Dense matmuls by our own kernels for all cards: by the operands' type, and as a DenseMatmul where there is no cuBLASLt.
#include "kernels/cuda/matmul/dense_matmul.h"

namespace train_qat::CU_BACKEND {

void own_matmul(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                bool accumulate) {
    if (a.dtype == DType::bfloat16)
        matmul_bfloat16(stream, form, out, a, b, accumulate);
    else
        matmul_float32(stream, form, out, a, b, accumulate);
}

#if !defined(TRAIN_QAT_CUBLASLT)

namespace {

class OwnMatmul final : public DenseMatmul {
  public:
    explicit OwnMatmul(Device& device) : device_(device) {}
    const char* name() const override { return "mma kernels"; }
    void multiply(MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                  bool accumulate) override {
        own_matmul(device_.stream(), form, out, a, b, accumulate);
    }

  private:
    Device& device_;
};

}  // namespace

std::unique_ptr<DenseMatmul> make_dense_matmul(Device& device) {
    return std::make_unique<OwnMatmul>(device);
}

#endif

}  // namespace train_qat::CU_BACKEND
