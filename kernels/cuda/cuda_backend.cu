// What the CUDA backend says about its device, and how it is made.
#include "kernels/cuda/cuda_backend.h"

#include <cstdio>

namespace train_qat {

namespace CU_BACKEND {

CudaBackend::CudaBackend(const CudaOptions& options)
    : device_(options),
      dense_(make_dense_matmul(device_)),
      tables_(device_, [this](const ComputeWeight& weight, Grid grid, int64_t group) {
          return stores_codes(device_, *dense_, weight, grid, group);
      }) {
    require_attention_kernels(device_);
}

std::string CudaBackend::describe() const {
    const DeviceProperties& card = device_.properties();
    char text[80];
    std::snprintf(text, sizeof text, ", compute capability %d.%d, %d multiprocessors, %.1f GiB, ", card.major,
                  card.minor, card.multiprocessors, static_cast<double>(card.memory) / (1 << 30));
    return card.name + text + card.libraries;
}

int64_t CudaBackend::available_memory() const {
    return device_.runtime().available_memory();
}

double CudaBackend::peak_flops(DType compute_type) {
    const DeviceProperties& card = device_.properties();
    return compute_type == DType::bfloat16 ? card.bfloat16_flops : card.float32_flops;
}

// The emulated device's memory is the host's.
bool CudaBackend::host_addressable() const {
#if defined(__CUDACC__)
    return false;
#else
    return true;
#endif
}

void CudaBackend::copy_to_device(void* device, const void* host, int64_t bytes) {
    device_.runtime().copy_to_device(device, host, bytes);
}

void CudaBackend::copy_to_host(void* host, const void* device, int64_t bytes) {
    device_.runtime().copy_to_host(host, device, bytes);
}

void CudaBackend::fill_zero(void* device, int64_t bytes) {
    device_.runtime().fill_zero(device, bytes);
}

void CudaBackend::synchronize() {
    device_.runtime().synchronize();
}

}  // namespace CU_BACKEND

#if defined(__CUDACC__)
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
    return std::make_unique<CU_BACKEND::CudaBackend>(options);
}
#else
std::unique_ptr<Backend> make_emulated_cuda_backend(const CudaOptions& options) {
    CudaOptions emulated = options;
    if (emulated.qat_gemm == QatGemm::automatic) emulated.qat_gemm = QatGemm::fused;
    return std::make_unique<CU_BACKEND::CudaBackend>(emulated);
}
#endif

}  // namespace train_qat
