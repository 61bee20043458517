#include "model/run/sample.h"

#include <stdexcept>

#include "data/text_stream.h"
#include "model/job/stop_signal.h"

namespace train_qat {

namespace {

GenerationOptions generation_options(const Options& options, const Tokenizer& tokenizer) {
    return {.tokens = options.sample_tokens,
            .end_token = tokenizer.eos_id(),
            .vocabulary = static_cast<int64_t>(tokenizer.vocabulary_size()),
            .sampling = {options.temperature, options.top_k, options.top_p, options.seed},
            .stop = stop_requested};
}

}  // namespace

TextSample::TextSample(const Options& options, const ModelConfig& config, const std::string& begin,
                       const std::string& flag)
    : tokenizer_(options.data.tokenizer), generation_(generation_options(options, tokenizer_)) {
    const std::string& path = options.data.tokenizer;
    if (tokenizer_.vocabulary_size() > static_cast<uint64_t>(config.vocabulary))
        throw std::runtime_error(
            "-tokenizer " + path + ": has " + std::to_string(tokenizer_.vocabulary_size()) +
            " tokens, more than the vocabulary of the model, " + std::to_string(config.vocabulary) +
            "; give its own shards, or a larger -vocab");
    if (tokenizer_.bos_id() >= 0) prompt_.push_back(tokenizer_.bos_id());
    for (int32_t id : tokenizer_.encode(begin)) prompt_.push_back(id);
    // Without a begin token documents begin behind the end of the one before (data/prepare.py).
    if (prompt_.empty() && tokenizer_.eos_id() >= 0) prompt_.push_back(tokenizer_.eos_id());
    if (prompt_.empty())
        throw std::runtime_error(flag + ": holds no token of " + path +
                                 ", which has neither a begin nor an end token; give some text");
}

std::string TextSample::text(Transformer& model) const {
    std::string text;
    Decoder decoder(model);
    write(decoder, [&text](const std::string& piece) { text += piece; });
    return text;
}

Generation TextSample::write(Decoder& decoder, const std::function<void(const std::string&)>& write) const {
    TextStream stream(tokenizer_);
    write(stream.add(prompt_));
    const Generation generation =
        generate(decoder, prompt_, generation_, [&](int32_t token) { write(stream.add({token})); });
    write(stream.finish());
    return generation;
}

}  // namespace train_qat
