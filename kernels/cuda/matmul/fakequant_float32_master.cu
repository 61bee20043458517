// Fused matmuls from float32 master weights.
#include "kernels/cuda/matmul/fakequant_sources.cuh"

namespace train_qat::CU_BACKEND {

void multiply_float32_master(const FakeQuantProduct& product) {
    launch_master<float>(product);
}

}  // namespace train_qat::CU_BACKEND
