#include "model/run/sample.h"

#include <stdexcept>

namespace train_qat {

TextSample::TextSample(const Options& options, const ModelConfig& config)
    : tokenizer_(options.data.tokenizer),
      sampling_{options.sample_tokens, options.temperature, tokenizer_.eos_id(), options.seed} {
    const std::string& path = options.data.tokenizer;
    if (tokenizer_.vocabulary_size() > static_cast<uint64_t>(config.vocabulary))
        throw std::runtime_error(
            "-tokenizer " + path + ": has " + std::to_string(tokenizer_.vocabulary_size()) +
            " tokens, more than the vocabulary of the model, " + std::to_string(config.vocabulary) +
            "; give its own shards, or a larger -vocab");
    // Documents begin behind the end of the one before where there is no begin token (data/prepare.py).
    const int32_t start = tokenizer_.bos_id() >= 0 ? tokenizer_.bos_id() : tokenizer_.eos_id();
    if (start >= 0) prompt_.push_back(start);
    for (int32_t id : tokenizer_.encode(options.prompt)) prompt_.push_back(id);
    if (prompt_.empty()) throw std::runtime_error("-prompt: is empty, and " + path + " has neither a begin nor an end token");
}

std::string TextSample::text(Transformer& model) const {
    std::vector<int32_t> ids = generate(model, prompt_, sampling_);
    // The model's vocabulary may be padded beyond the tokenizer's.
    std::erase_if(ids, [&](int32_t id) { return id >= static_cast<int32_t>(tokenizer_.vocabulary_size()); });
    return tokenizer_.decode(ids);
}

}  // namespace train_qat
