// What kernels/ranks/nccl_communicator.h offers in a program that was built without NCCL.
#if !defined(TRAIN_QAT_NCCL)

#include <stdexcept>

#include "kernels/ranks/nccl_communicator.h"

namespace train_qat {

std::string nccl_unavailable() {
#if defined(TRAIN_QAT_CUDA)
    return "this program was built without NCCL; install libnccl-dev, 2.14 or later, or set NCCL_HOME, and "
           "build again";
#else
    return "this program was built without CUDA, and so without NCCL (make CUDA=1 builds both in)";
#endif
}

NcclId new_nccl_id() {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

std::unique_ptr<Communicator> make_nccl_communicator(Backend&, int, int, const NcclId&, double) {
    throw std::runtime_error("ranks on CUDA devices need NCCL: " + nccl_unavailable());
}

}  // namespace train_qat

#endif
