#include "kernels/cuda/platform/hopper_device.h"

#include <stdexcept>

#include "kernels/cuda/platform/hopper.cuh"

namespace train_qat::CU_BACKEND {

namespace {

// Whether the code that runs here was compiled for Hopper's own instructions.
__global__ void tell_target(int* answer) {
    store(answer, hopper_target ? 1 : 0);
}

}  // namespace

void require_hopper(Device& device, const std::string& asker, const std::string& remedy) {
    const DeviceProperties& card = device.properties();
    if (card.major != 9 || card.minor != 0)
        throw std::runtime_error(asker + ": needs a card of compute capability 9.0, and this is " + card.name +
                                 ", " + std::to_string(card.major) + "." + std::to_string(card.minor) + "; " +
                                 remedy);
    const DeviceBuffer answer(device, sizeof(int));
    CU_LAUNCH(tell_target, 1, 1, 0, device.stream(), static_cast<int*>(answer.data()));
    int holds = 0;
    device.runtime().copy_to_host(&holds, answer.data(), sizeof holds);
    if (holds == 0)
        throw std::runtime_error(asker + ": this program has no code for Hopper's own instructions (sm_90a); "
                                         "build it with CUDA 12.0 or later");
}

}  // namespace train_qat::CU_BACKEND
