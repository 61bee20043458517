// The sample of text at the end of a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "model/generate.h"
#include "model/run/options.h"

namespace train_qat {

class TextSample {
  public:
    // Reads -tokenizer and -prompt before the training: a mistake there would else show up at its end.
    // std::runtime_error.
    TextSample(const Options& options, const ModelConfig& config);

    // The prompt and what the model continues it with, as its weights are quantized now.
    std::string text(Transformer& model) const;

  private:
    const Tokenizer tokenizer_;
    const SamplingOptions sampling_;
    std::vector<int32_t> prompt_;
};

}  // namespace train_qat
