// How the CUDA backend is made. Free of CUDA, for hosts' source files.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace train_qat {

// Which kernels multiply with quantized weights.
enum class QatGemm : uint8_t {
    automatic,  // per shape, whichever is faster on this device
    fused,      // our own: packed codes become levels on their way into the tensor cores
    cublaslt,   // bfloat16 levels in memory and cuBLASLt; without that library our bfloat16 kernel
    hopper,     // as fused, by the instructions of compute capability 9.0; never chosen by `automatic`
};

// Which kernels multiply dense matrices: plain weights, quantized ones as levels, and all weight gradients.
enum class DenseGemm : uint8_t {
    automatic,  // cuBLASLt, without that library our own for all cards, until others have been timed on a card
    cublaslt,
    hopper,  // by Hopper's own instructions: compute capability 9.0; what they do not take as `automatic`
};

// Which kernels compute attention, forward and backward.
enum class AttentionKernels : uint8_t {
    automatic,  // mma, until the others have been timed on a card
    mma,        // by what all devices have; for any head dimension
    hopper,     // by Hopper's own instructions: compute capability 9.0, bfloat16, head dimension 64 or 128
};

struct CudaOptions {
    int device = 0;
    QatGemm qat_gemm = QatGemm::automatic;
    DenseGemm gemm = DenseGemm::automatic;
    AttentionKernels attention = AttentionKernels::automatic;
    int64_t matmul_rows = 8192;  // rows of activations that `automatic` is timed with
    std::string tuning_file;     // keeps what was chosen by timing (tuning_table.h); "": not kept
    // Told in one line each: choices of `automatic`, and what `hopper` leaves to others; may be empty.
    std::function<void(const std::string&)> report;
};

// "" or, in one line, why CUDA device number `device` cannot be used.
std::string cuda_unavailable(int device);
// std::runtime_error with that line when it cannot.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// The same kernels on the CPU (dev/emulator): for tests, thousands of times slower. `automatic` is `fused`
// there, times mean nothing.
std::unique_ptr<Backend> make_emulated_cuda_backend(const CudaOptions& options);

}  // namespace train_qat
