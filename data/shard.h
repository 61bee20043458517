// Token shards: a file of token ids, in llm.c's format, read through a memory map. prepare.py writes them.
//
//   bytes 0..1023   header, 256 x int32, little endian
//     [0] magic     20240520 (uint16 tokens) or 20240801 (uint32 tokens: vocabularies over 65,536)
//     [1] version   1        (uint16 tokens) or 7        (uint32 tokens)
//     [2] number of tokens, at most 2^31 - 1
//     [3] vocabulary size of the tokenizer; 0 = unknown, which is what llm.c's own shards hold
//     [4], [5] low and high 32 bits of the tokenizer hash (data/tokenizer.h); 0 = unknown
//   then the tokens; the file ends with the last one
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace train_qat {

constexpr int64_t shard_header_bytes = 1024;

// A read-only shard. All offsets are 64 bits wide, so files over 2 GiB work. Cheap to open (only the header
// is read), movable, safe to read from several threads.
class Shard {
  public:
    enum class Access { sequential, random };

    // Throws std::runtime_error naming the file if it can't be opened or isn't a valid shard: foreign magic,
    // unknown version, no tokens, or a size that disagrees with the declared number of tokens.
    explicit Shard(const std::string& path);

    const std::string& path() const { return path_; }
    int64_t token_count() const { return token_count_; }
    int bytes_per_token() const { return bytes_per_token_; }
    uint32_t vocabulary_size() const { return vocabulary_size_; }  // 0 = unknown
    uint64_t tokenizer_hash() const { return tokenizer_hash_; }    // 0 = unknown

    // Token at `index` in [0, token_count), as stored. Throws std::out_of_range outside of it.
    uint32_t token(int64_t index) const;

    // Copies tokens [begin, begin + count) to out. Throws std::runtime_error naming the file and the position
    // if one of them is not below `vocabulary_limit` (the model's vocabulary size; at most 2^31), and
    // std::out_of_range if the range isn't inside the shard.
    void copy(int64_t begin, int64_t count, uint32_t vocabulary_limit, int32_t* out) const;

    // Hints for the operating system's page cache; they never fail and never change what is read.
    void expect(Access access) const;                    // how the whole shard will be read
    void will_need(int64_t begin, int64_t count) const;  // these tokens are read soon

  private:
    struct Unmap {
        int64_t bytes = 0;
        void operator()(const std::byte* map) const;
    };
    using Mapping = std::unique_ptr<const std::byte, Unmap>;

    static Mapping map_file(const std::string& path);
    int64_t file_bytes() const { return map_.get_deleter().bytes; }
    void check_range(int64_t begin, int64_t count) const;
    template <typename Token>
    void copy_as(int64_t begin, int64_t count, uint32_t vocabulary_limit, int32_t* out) const;

    std::string path_;
    Mapping map_;  // the whole file
    int64_t token_count_ = 0;
    int bytes_per_token_ = 0;
    uint32_t vocabulary_size_ = 0;
    uint64_t tokenizer_hash_ = 0;
};

}  // namespace train_qat
