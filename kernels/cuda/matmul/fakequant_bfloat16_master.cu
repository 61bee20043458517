// Fused matmuls from bfloat16 master weights.
#include "kernels/cuda/matmul/fakequant_sources.cuh"

namespace train_qat::CU_BACKEND {

void multiply_bfloat16_master(const FakeQuantProduct& product) {
    launch_master<bfloat16>(product);
}

}  // namespace train_qat::CU_BACKEND
