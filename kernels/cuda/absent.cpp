// What stands in for the CUDA backend in a program that was built without it.
#include <stdexcept>

#include "kernels/cuda/platform/cuda_options.h"

namespace train_qat {

std::string cuda_unavailable(int) {
    return "this program was built without CUDA (make CUDA=1 builds it in, and needs nvcc)";
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
    throw std::runtime_error("no CUDA device to use: " + cuda_unavailable(options.device) +
                             "; or use -device cpu");
}

}  // namespace train_qat
