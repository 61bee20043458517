// What the CUDA backend says about its device, and how it is made.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdio>

#include "kernels/cuda/platform/data_sheet.h"
#include "kernels/cuda/platform/hopper_device.h"

namespace train_qat {

namespace CU_BACKEND {

CudaBackend::CudaBackend(const CudaOptions& options)
    : device_(options),
      dense_(choose_dense_matmul(device_)),
      tables_(device_, [this](const ComputeWeight& weight, Grid grid, int64_t group) {
          return stores_codes(device_, *dense_, weight, grid, group);
      }) {
    if (options.qat_gemm == QatGemm::hopper) require_hopper(device_, "-qat_gemm hopper", "use auto");
    if (options.attention == AttentionKernels::hopper)
        require_hopper(device_, "-attention hopper", "use auto");
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

std::string CudaBackend::peak_source(DType compute_type) const {
    const DeviceProperties& card = device_.properties();
    return compute_type == DType::bfloat16 && in_data_sheet(card.name) ? "data sheet" : "from its clock";
}

// As many as 1 GiB of logits holds, of bfloat16 twice as many as of float32, at most a sixteenth of the card's memory;
// from 512 to 8,192 rows, whole tiles of the matmuls. An H100 gained nothing beyond (124M, vocabulary 50,304, 32,768 rows in all: 420k tokens/s with 512 rows, 461k
// with 2,048, 468k with 8,192 and with all).
int64_t CudaBackend::preferred_logit_rows(int64_t rows, int64_t vocabulary, DType logits) const {
    constexpr int64_t fewest = 512, most = 8192, tile = 128, most_bytes = int64_t{1} << 30;
    const int64_t bytes = std::min(most_bytes, device_.properties().memory / 16);
    const int64_t fitting = bytes / (vocabulary * size_of(logits)) / tile * tile;
    return std::min(rows, std::clamp(fitting, fewest, most));
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
