// Text to token ids and back: by a SentencePiece model, or by the byte-level BPE of a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace train_qat {

class TokenizerModel;

class Tokenizer {
  public:
    // path: a SentencePiece .model, a tokenizer.json (byte-level BPE, as GPT-2, Llama 3 and Qwen have it), or a folder
    // with one of them; what the file holds says which, not its name. What begins and ends a text with a tokenizer.json
    // the files beside it say (data/begin_and_end.h). Throws std::runtime_error naming the file if it is missing, none of these, or of a kind that
    // would need what is not supported.
    explicit Tokenizer(const std::string& path);
    ~Tokenizer();
    Tokenizer(Tokenizer&& other) noexcept;
    Tokenizer& operator=(Tokenizer&& other) noexcept;

    uint32_t vocabulary_size() const;
    int32_t bos_id() const;  // begin of a document; -1 if the model has none
    int32_t eos_id() const;  // end of a document; -1 if the model has none

    // UTF-8 text to ids, without a begin or end token.
    std::vector<int32_t> encode(const std::string& text) const;
    // Ids to UTF-8 text; begin and end tokens leave nothing. Throws std::runtime_error for an id outside
    // [0, vocabulary_size).
    std::string decode(const std::vector<int32_t>& ids) const;
    // Bytes of text that the token stands for; 0 for control tokens. Throws as decode.
    int64_t bytes_of(int32_t id) const;

  private:
    void check_id(int32_t id) const;

    std::string path_;
    std::unique_ptr<TokenizerModel> model_;
};

// Whether it is valid UTF-8, as encode needs it: some tokenizers refuse other bytes, some replace them.
bool is_utf8(const std::string& text);

// The file of a tokenizer: `path` itself, or the tokenizer.json or else tokenizer.model of a folder.
std::string tokenizer_file(const std::string& path);

// Identifies a tokenizer: the 64-bit FNV-1a hash of the bytes of its file. data/prepare.py computes the
// same and stores it in every shard, so that data of another tokenizer is refused. Throws std::runtime_error
// if the file can't be read.
//   hash = 0xcbf29ce484222325;  for each byte: hash = (hash XOR byte) * 0x100000001b3  (mod 2^64)
// Source: Fowler, Noll, Vo, "The FNV non-cryptographic hash algorithm" (draft-eastlake-fnv).
uint64_t tokenizer_hash(const std::string& path);

}  // namespace train_qat
