// Text out of tokens as they come, in whole characters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace train_qat {

class TextStream {
  public:
    // The tokenizer outlives the stream.
    explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

    // The text that further tokens add. A character may be several tokens: its bytes are kept back until it is whole. All
    // that comes out, with that of finish(), is what Tokenizer::decode makes of all tokens.
    std::string add(const std::vector<int32_t>& tokens);
    // What was kept back: no character, so U+FFFD or the bytes themselves, as the tokenizer decodes them.
    std::string finish();

  private:
    std::string behind_written() const;

    const Tokenizer& tokenizer_;
    // Tokens from some that are written on: a token's text may depend on the one before. The first `written_` of them are
    // written.
    std::vector<int32_t> tokens_;
    size_t written_ = 0;
};

}  // namespace train_qat
