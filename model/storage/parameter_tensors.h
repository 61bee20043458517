// The parameters as named tensors, for checkpoints.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "model/storage/named_tensor.h"

namespace train_qat {

// Master weights under their Hugging Face names and, while the weights are quantized, NAME_scale (rows,
// groups): what this process keeps of them, so divided tensors where the parameters have a shard. Where they
// have none, `part` says which rows of the whole tensors are meant: for a checkpoint that ranks write
// together.
std::vector<NamedTensor> model_tensors(const Parameters& parameters, const StateShard& part = {});

// NAME.first_moment, NAME.second_moment, and those of the scales while the weights are quantized; as above.
std::vector<NamedTensor> optimizer_tensors(const Parameters& parameters, const StateShard& part = {});

}  // namespace train_qat
