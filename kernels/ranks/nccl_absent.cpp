// What stands in for kernels/ranks/nccl_communicator.cu in a program that was built without NCCL.
#include <stdexcept>

#include "kernels/ranks/nccl_communicator.h"

namespace train_qat {

std::string nccl_unavailable() {
    return "this program was built without NCCL (make CUDA=1 builds it in, and needs libnccl-dev, 2.14 or later, or "
           "NCCL_HOME)";
}

NcclId new_nccl_id() {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

std::unique_ptr<Communicator> make_nccl_communicator(Backend&, int, int, const NcclId&, double) {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

}  // namespace train_qat
