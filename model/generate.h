// Text sampling: continues a prompt token by token.
#pragma once

#include <cstdint>
#include <vector>

#include "model/transformer.h"

namespace train_qat {

struct SamplingOptions {
    int64_t tokens = 128;      // to add to the prompt
    double temperature = 0.8;  // 0: the likeliest token
    int64_t end_token = -1;    // stops there
    uint64_t seed = 1;
};

// Returns the prompt and what follows it. prompt: at least one token id. Each step runs the whole text, or
// its last T tokens, through the model as its weights are quantized now.
std::vector<int32_t> generate(Transformer& model, std::vector<int32_t> prompt,
                              const SamplingOptions& options);

}  // namespace train_qat
