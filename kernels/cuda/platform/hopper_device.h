// Whether kernels by Hopper's own instructions (hopper.cuh) run here.
#pragma once

#include <string>

#include "kernels/cuda/platform/device.h"

namespace train_qat::CU_BACKEND {

// Throws std::runtime_error, one line that begins with `asker`, a flag or a program, where this device or this program
// cannot run them. remedy: what to do on another card.
void require_hopper(Device& device, const std::string& asker, const std::string& remedy);

}  // namespace train_qat::CU_BACKEND
