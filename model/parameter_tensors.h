// The parameters as named tensors, for checkpoints.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "model/safetensors.h"

namespace train_qat {

// Master weights under their Hugging Face names and, while the weights are quantized, NAME_scale (rows,
// groups).
std::vector<NamedTensor> model_tensors(const Parameters& parameters);

// NAME.first_moment, NAME.second_moment, and those of the scales while the weights are quantized.
std::vector<NamedTensor> optimizer_tensors(const Parameters& parameters);

}  // namespace train_qat
