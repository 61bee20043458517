// A sample of text: at the end of a run, or of a checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "model/generation/generate.h"
#include "model/job/options.h"

namespace train_qat {

class TextSample {
  public:
    // Reads -tokenizer and the begin of the text before the training: a mistake there would else show up at its end. flag:
    // that the begin was given by, for errors. std::runtime_error.
    TextSample(const Options& options, const ModelConfig& config, const std::string& begin,
               const std::string& flag);

    // The begin and what the model continues it with, as its weights are quantized now; less of it when the run is asked to
    // stop meanwhile.
    std::string text(Transformer& model) const;
    // The same, piece by piece as it is made, in whole characters.
    Generation write(Decoder& decoder, const std::function<void(const std::string&)>& write) const;

  private:
    const Tokenizer tokenizer_;
    const GenerationOptions generation_;
    std::vector<int32_t> prompt_;
};

}  // namespace train_qat
