// Text generation: continues a prompt token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/generation/decoder.h"
#include "model/generation/sampler.h"

namespace train_qat {

struct GenerationOptions {
    int64_t tokens = 128;    // to add to the prompt
    int32_t end_token = -1;  // stops there
    int64_t vocabulary = 0;  // tokens below it can be drawn: a model's vocabulary may be padded; 0: all
    SamplingOptions sampling;
    std::function<bool()> stop;  // asked before each token whether to end there; none: never
};

struct Generation {
    std::vector<int32_t> tokens;  // what follows the prompt, without the end token
    int64_t prompt_tokens = 0;    // read
    double prompt_seconds = 0;
    // Tokens read one by one, and the time for that and for drawing.
    int64_t steps = 0;
    double step_seconds = 0;
    double mean_position = 0;  // of these tokens
    int64_t times_reread = 0;
};

// Reads the prompt, of at least one token, with an empty decoder. on_token is told of each token that is drawn, and not timed.
// Where the decoder's T positions are full, it goes on with the last T/2 tokens, read again; so it begins with a longer
// prompt's.
Generation generate(Decoder& decoder, const std::vector<int32_t>& prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& on_token = {});

}  // namespace train_qat
