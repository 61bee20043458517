// Device, memory and recorded work of the CUDA backend, and the choice between packed codes and plain levels.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "kernels/codes.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "kernels/cuda/weights/weight_update.cuh"

namespace train_qat {

namespace CU_BACKEND {

namespace {

std::string tuning_device(const DeviceProperties& card) {
    return card.name + ", " + std::to_string(card.major) + "." + std::to_string(card.minor) + ", " +
           card.libraries;
}

}  // namespace

CudaBackend::CudaBackend(const CudaOptions& options)
    : options_(options),
      runtime_(options.device),
      tuning_(options.tuning_file, tuning_device(runtime_.properties())),
      updates_(std::make_unique<WeightUpdate>(*this)) {
#if defined(TRAIN_QAT_CUBLASLT)
    dense_ = make_cublaslt_matmul(runtime_, tuning_);
#else
    dense_ = make_own_matmul(runtime_);
#endif
}

CudaBackend::~CudaBackend() = default;

std::string CudaBackend::describe() const {
    const DeviceProperties& card = properties();
    char text[80];
    std::snprintf(text, sizeof text, ", compute capability %d.%d, %d multiprocessors, %.1f GiB, ", card.major,
                  card.minor, card.multiprocessors, static_cast<double>(card.memory) / (1 << 30));
    return card.name + text + card.libraries;
}

int64_t CudaBackend::available_memory() const {
    return runtime_.available_memory();
}

double CudaBackend::peak_flops(DType compute_type) {
    return compute_type == DType::bfloat16 ? properties().bfloat16_flops : properties().float32_flops;
}

// The emulated device's memory is the host's.
bool CudaBackend::host_addressable() const {
#if defined(__CUDACC__)
    return false;
#else
    return true;
#endif
}

void* CudaBackend::allocate(int64_t bytes) {
    return runtime_.allocate(bytes);
}

void CudaBackend::release(void* memory) {
    recorded_.clear();  // a record may hold the address
    runtime_.release(memory);
}

void CudaBackend::copy_to_device(void* device, const void* host, int64_t bytes) {
    runtime_.copy_to_device(device, host, bytes);
}

void CudaBackend::copy_to_host(void* host, const void* device, int64_t bytes) {
    runtime_.copy_to_host(host, device, bytes);
}

void CudaBackend::fill_zero(void* device, int64_t bytes) {
    runtime_.fill_zero(device, bytes);
}

void CudaBackend::synchronize() {
    runtime_.synchronize();
}

void* CudaBackend::scratch(int64_t bytes) {
    if (bytes > scratch_.bytes()) {
        if (recording_) throw std::logic_error("CudaBackend: recorded work asks for more scratch memory");
        scratch_ = DeviceMemory();  // release() also drops the records that hold the old address
        scratch_ = DeviceMemory(*this, bytes);
    }
    return scratch_.data();
}

// The first run takes what is chosen or allocated once - algorithms, scratch - and only later ones are
// recorded.
void CudaBackend::replay(const ReplayKey& key, const std::function<void()>& work) {
    Recorded& recorded = recorded_[key];
    if (recorded.graph == nullptr) {
        if (!recorded.seen) {
            work();
            recorded_[key].seen = true;
            return;
        }
        recording_ = true;
        try {
            recorded.graph = runtime_.record(work);
        } catch (...) {
            recording_ = false;
            throw;
        }
        recording_ = false;
    }
    runtime_.launch(*recorded.graph);
}

// ---- packed codes or plain levels

bool CudaBackend::stores_codes(const ComputeWeight& weight, Grid grid, int64_t group) {
    const bool possible = grid != Grid::none && weight.dtype == DType::bfloat16 && !weight.embedding &&
                          (group == weight.columns || group == 32 || group == 64 || group == 128);
    if (!possible || options_.qat_gemm == QatGemm::cublaslt) return false;
    if (options_.qat_gemm == QatGemm::fused) return true;
    const std::string key = "qat-gemm-" + std::to_string(weight.rows) + "x" + std::to_string(weight.columns) +
                            "-" + std::to_string(code_bits(grid)) + "bit-group" + std::to_string(group) +
                            "-rows" + std::to_string(options_.matmul_rows);
    const std::string* known = tuning_.find(key);
    if (known != nullptr && (*known == "codes" || *known == "levels")) return *known == "codes";
    const bool codes = codes_are_faster(weight, grid, group);
    tuning_.set(key, codes ? "codes" : "levels");
    return codes;
}

// Times the forward and the input-gradient matmul in both forms, on zeros: times do not depend on the
// numbers.
bool CudaBackend::codes_are_faster(const ComputeWeight& weight, Grid grid, int64_t group) {
    const int64_t rows = options_.matmul_rows;
    DeviceMemory x_memory(*this, rows * weight.columns * size_of(DType::bfloat16));
    DeviceMemory z_memory(*this, rows * weight.rows * size_of(DType::bfloat16));
    DeviceMemory storage(*this, compute_weight_bytes(weight.rows, weight.columns, weight.dtype, false));
    const Tensor x(x_memory.data(), DType::bfloat16, {rows, weight.columns});
    const Tensor z(z_memory.data(), DType::bfloat16, {rows, weight.rows});
    ComputeWeight trial = weight;
    trial.storage = storage.data();
    trial.code_group = group;
    double seconds[2];
    for (int form = 0; form < 2; ++form) {
        constexpr int repetitions = 5;
        trial.codes = form == 0 ? Grid::none : grid;
        const auto both = [&] {
            matmul_forward(z, x, trial);
            matmul_input_gradient(x, z, trial);
        };
        seconds[form] = runtime_.seconds(both, repetitions);
    }
    if (options_.report) {
        char text[200];
        std::snprintf(
            text, sizeof text, "matmul %lld x %lld, %d-bit codes: fused %.0f us, cuBLASLt %.0f us: %s",
            static_cast<long long>(weight.rows), static_cast<long long>(weight.columns), code_bits(grid),
            seconds[1] * 1e6, seconds[0] * 1e6, seconds[1] < seconds[0] ? "fused" : "cuBLASLt");
        options_.report(text);
    }
    return seconds[1] < seconds[0];
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
