// Byte-pair encoding (arXiv 1508.07909) of bytes: pairs of neighbouring tokens become one, those of the earliest merge
// first, until no merge is left.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace train_qat {

class BytePairs {
  public:
    // tokens: {bytes: id}; merges: pairs of tokens, the earliest first. std::runtime_error where one of the 256 bytes
    // has no token, or a merge has a part or result that is none.
    BytePairs(std::unordered_map<std::string, int32_t> tokens,
              const std::vector<std::pair<std::string, std::string>>& merges, bool whole_words_first);

    // Appends the ids of `bytes`. With whole_words_first bytes that are a token are that token, whatever merges would
    // make of them.
    void encode(std::string_view bytes, std::vector<int32_t>& ids) const;

  private:
    struct Merge {
        int32_t rank, result;
    };
    const Merge* merge_of(int32_t left, int32_t right) const;

    std::unordered_map<std::string, int32_t> tokens_;
    std::unordered_map<uint64_t, Merge> merges_;  // by left and right id
    int32_t of_byte_[256];
    bool whole_words_first_;
};

}  // namespace train_qat
