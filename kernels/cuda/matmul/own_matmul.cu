// DenseMatmul by our own kernels: on tensor cores for bfloat16, outside of them for float32.
#include <stdexcept>

#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/matmul_forms.h"

namespace train_qat::CU_BACKEND {

namespace {

class OwnMatmul final : public DenseMatmul {
  public:
    explicit OwnMatmul(Runtime& runtime) : runtime_(runtime) {}

    void multiply_nt(const Tensor& out, const Tensor& a, const Tensor& b) override {
        multiply(MatmulForm::nt, out, a, b, false);
    }
    void multiply_nn(const Tensor& out, const Tensor& a, const Tensor& b) override {
        multiply(MatmulForm::nn, out, a, b, false);
    }
    void multiply_tn(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) override {
        multiply(MatmulForm::tn, out, a, b, accumulate);
    }

  private:
    void multiply(MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
        if (a.dtype == DType::bfloat16)
            matmul_bfloat16(runtime_.stream(), form, out, a, b, accumulate);
        else
            matmul_float32(runtime_.stream(), form, out, a, b, accumulate);
    }

    Runtime& runtime_;
};

}  // namespace

std::unique_ptr<DenseMatmul> make_own_matmul(Runtime& runtime) {
    return std::make_unique<OwnMatmul>(runtime);
}

}  // namespace train_qat::CU_BACKEND
