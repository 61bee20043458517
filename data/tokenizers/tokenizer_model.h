// What the kinds of tokenizers have in common (data/tokenizer.h): each kind is one file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace train_qat {

// The functions are those of Tokenizer; ids are checked there.
class TokenizerModel {
  public:
    virtual ~TokenizerModel() = default;
    virtual uint32_t vocabulary_size() const = 0;
    virtual int32_t bos_id() const = 0;
    virtual int32_t eos_id() const = 0;
    virtual std::vector<int32_t> encode(const std::string& text) const = 0;
    virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
    virtual int64_t bytes_of(int32_t id) const = 0;
};

// A begin or end token as a file names it that lies beside the tokenizer's own.
struct NamedToken {
    std::string text;  // as a vocabulary writes it; empty: the id says which
    int32_t id;
};
struct BeginAndEnd {
    std::vector<NamedToken> begin, end;  // of each the first counts that the tokenizer has
};

// content: the bytes of the file `path`. std::runtime_error naming it where it is no such model.
std::unique_ptr<TokenizerModel> open_sentencepiece(const std::string& path, const std::string& content);
std::unique_ptr<TokenizerModel> open_byte_level(const std::string& path, const std::string& content,
                                                const BeginAndEnd& named);

}  // namespace train_qat
