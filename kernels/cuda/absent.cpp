// What stands in for the CUDA backend in a program that was built without it.
#include <stdexcept>

#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/ranks/nccl_communicator.h"

namespace train_qat {

std::string cuda_unavailable(int) {
    return "this program was built without CUDA (make CUDA=1 builds it in, and needs nvcc)";
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
    throw std::runtime_error("no CUDA device to use: " + cuda_unavailable(options.device) +
                             "; or use -device cpu");
}

std::string nccl_unavailable() {
    return "this program was built without CUDA, and so without NCCL (make CUDA=1 builds both in)";
}

NcclId new_nccl_id() {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

std::unique_ptr<Communicator> make_nccl_communicator(Backend&, int, int, const NcclId&, double) {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

}  // namespace train_qat
