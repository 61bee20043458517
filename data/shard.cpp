#include "data/shard.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "data/file_bytes.h"

namespace train_qat {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little endian and read in place");

using Header = std::array<int32_t, 256>;
static_assert(sizeof(Header) == shard_header_bytes);

constexpr int32_t magic_uint16 = 20240520, version_uint16 = 1;
constexpr int32_t magic_uint32 = 20240801, version_uint32 = 7;
constexpr int32_t magic_hellaswag = 20240522;
constexpr const char* how_to_prepare = "; make token shards with data/prepare.py";

[[noreturn]] void fail(const std::string& path, const std::string& message) {
    throw std::runtime_error(path + ": " + message);
}

[[noreturn]] void fail_errno(const std::string& path, const std::string& action) {
    const int error = errno;
    fail(path, "cannot " + action + ": " + std::strerror(error));
}

bool is_printable_text(const char* bytes, size_t count) {
    return std::all_of(bytes, bytes + count, [](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte >= 0x20 || byte == '\n' || byte == '\r' || byte == '\t';
    });
}

// What a file that doesn't start with a shard's magic most likely is. `start` holds its first 16 bytes.
std::string describe_foreign_file(const char* start) {
    int32_t magic;
    uint64_t first_8_bytes;
    std::memcpy(&magic, start, sizeof magic);
    std::memcpy(&first_8_bytes, start, sizeof first_8_bytes);
    if (magic == magic_hellaswag) return "is a HellaSwag evaluation file (magic 20240522), not a token shard";
    if (std::memcmp(start, "BIN.TOK\n", 8) == 0) {
        return "is a token file of llmq (it starts with BIN.TOK), not a token shard of llm.c's format" +
               std::string(how_to_prepare);
    }
    // safetensors: the length of a JSON header, then its opening brace.
    if (start[8] == '{' && first_8_bytes < (uint64_t{1} << 32)) {
        return "is a safetensors file (weights), not a token shard" + std::string(how_to_prepare);
    }
    if (std::memcmp(start, "GGUF", 4) == 0) return "is a GGUF file (weights), not a token shard";
    const std::string found = "not a token shard: magic " + std::to_string(magic) + ", expected " +
                              std::to_string(magic_uint16) + " or " + std::to_string(magic_uint32);
    if (static_cast<int32_t>(__builtin_bswap32(static_cast<uint32_t>(magic))) == magic_uint16) {
        return found + " (it is a big-endian shard)";
    }
    if (is_printable_text(start, 16)) return found + " (it looks like text)" + how_to_prepare;
    return found + how_to_prepare;
}

// Checks magic and version and returns the bytes per token.
int check_magic_and_version(const std::string& path, const Header& header) {
    const bool is_uint16 = header[0] == magic_uint16;
    if (!is_uint16 && header[0] != magic_uint32) {
        fail(path, describe_foreign_file(reinterpret_cast<const char*>(header.data())));
    }
    const int32_t expected = is_uint16 ? version_uint16 : version_uint32;
    if (header[1] != expected) {
        fail(path, "shard version " + std::to_string(header[1]) + " is not supported, expected version " +
                       std::to_string(expected) + " for magic " + std::to_string(header[0]));
    }
    return is_uint16 ? 2 : 4;
}

void check_file_size(const std::string& path, int64_t tokens, int bytes_per_token, int64_t actual) {
    const int64_t expected = shard_header_bytes + tokens * bytes_per_token;
    if (actual == expected) return;
    fail(path, (actual < expected ? "truncated: " : "has trailing bytes: ") +
                   std::string("its header declares ") + std::to_string(tokens) + " tokens, so " +
                   std::to_string(expected) + " bytes are expected, but the file has " +
                   std::to_string(actual) + " bytes; copy or prepare it again");
}

}  // namespace

void Shard::Unmap::operator()(const std::byte* map) const {
    ::munmap(const_cast<std::byte*>(map), static_cast<size_t>(bytes));
}

// Null for an empty file.
Shard::Mapping Shard::map_file(const std::string& path) {
    std::string why_not;
    const FileDescriptor file(open_regular_file(path, why_not));
    if (file.get() < 0) fail(path, "cannot open token shard: " + why_not);
    struct stat status;
    if (::fstat(file.get(), &status) != 0) fail_errno(path, "inspect token shard");
    if (status.st_size == 0) return {nullptr, Unmap{0}};
    void* map = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file.get(), 0);
    if (map == MAP_FAILED) fail_errno(path, "map token shard into memory");
    return {static_cast<const std::byte*>(map), Unmap{status.st_size}};
}

Shard::Shard(const std::string& path) : path_(path), map_(map_file(path)) {
    // A short file may still have a telling start, so its magic is looked at before its length.
    Header header{};
    const int64_t header_bytes = std::min(file_bytes(), shard_header_bytes);
    std::copy_n(map_.get(), header_bytes, reinterpret_cast<std::byte*>(header.data()));
    if (header_bytes >= 16) bytes_per_token_ = check_magic_and_version(path, header);
    if (header_bytes < shard_header_bytes) {
        fail(path, "too short for a token shard: " + std::to_string(file_bytes()) +
                       " bytes, its header alone has " + std::to_string(shard_header_bytes) + " bytes");
    }

    token_count_ = header[2];
    vocabulary_size_ = static_cast<uint32_t>(header[3]);
    tokenizer_hash_ = static_cast<uint32_t>(header[4]) | uint64_t{static_cast<uint32_t>(header[5])} << 32;
    if (token_count_ < 0) {
        fail(path, "declares " + std::to_string(token_count_) + " tokens (a shard holds at most 2147483647)");
    }
    if (token_count_ == 0) fail(path, "the shard holds zero tokens");
    check_file_size(path, token_count_, bytes_per_token_, file_bytes());
}

void Shard::check_range(int64_t begin, int64_t count) const {
    if (begin < 0 || count < 0 || begin > token_count_ - count) {
        throw std::out_of_range(path_ + ": " + std::to_string(count) + " tokens from " +
                                std::to_string(begin) + " on are not inside its " +
                                std::to_string(token_count_) + " tokens");
    }
}

uint32_t Shard::token(int64_t index) const {
    check_range(index, 1);
    const std::byte* address = map_.get() + shard_header_bytes + index * bytes_per_token_;
    uint32_t value = 0;
    std::memcpy(&value, address, static_cast<size_t>(bytes_per_token_));
    return value;
}

template <typename Token>
void Shard::copy_as(int64_t begin, int64_t count, uint32_t vocabulary_limit, int32_t* out) const {
    const Token* tokens = reinterpret_cast<const Token*>(map_.get() + shard_header_bytes) + begin;
    // One maximum over the range, instead of a branch per token, lets the loop vectorize.
    Token largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        largest = std::max(largest, tokens[i]);
        out[i] = static_cast<int32_t>(tokens[i]);
    }
    if (count == 0 || largest < vocabulary_limit) return;
    const Token* bad = std::find_if(tokens, tokens + count, [&](Token id) { return id >= vocabulary_limit; });
    fail(path_, "token " + std::to_string(begin + (bad - tokens)) + " has id " + std::to_string(*bad) +
                    ", but the model's vocabulary has " + std::to_string(vocabulary_limit) +
                    " ids; use the vocabulary size of the shard's tokenizer, or prepare the shard again");
}

void Shard::copy(int64_t begin, int64_t count, uint32_t vocabulary_limit, int32_t* out) const {
    check_range(begin, count);
    vocabulary_limit = std::min(vocabulary_limit, uint32_t{1} << 31);  // larger ids have no int32
    if (bytes_per_token_ == 2) {
        copy_as<uint16_t>(begin, count, vocabulary_limit, out);
    } else {
        copy_as<uint32_t>(begin, count, vocabulary_limit, out);
    }
}

void Shard::expect(Access access) const {
    ::madvise(const_cast<std::byte*>(map_.get()), static_cast<size_t>(file_bytes()),
              access == Access::random ? MADV_RANDOM : MADV_SEQUENTIAL);
}

void Shard::will_need(int64_t begin, int64_t count) const {
    check_range(begin, count);
    static const int64_t page_bytes = ::sysconf(_SC_PAGESIZE);
    const int64_t first = shard_header_bytes + begin * bytes_per_token_;
    const int64_t page = first / page_bytes * page_bytes;  // madvise wants the start of a page
    ::madvise(const_cast<std::byte*>(map_.get()) + page,
              static_cast<size_t>(first + count * bytes_per_token_ - page), MADV_WILLNEED);
}

}  // namespace train_qat
