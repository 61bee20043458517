#include "data/shard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

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

// Closes a file descriptor at the end of the scope.
struct FileDescriptor {
    int value = -1;
    ~FileDescriptor() {
        if (value >= 0) ::close(value);
    }
};

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

Shard::Shard(const std::string& path) : path_(path) {
    const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.value < 0) fail_errno(path, "open token shard");
    struct stat status;
    if (::fstat(file.value, &status) != 0) fail_errno(path, "inspect token shard");
    if (!S_ISREG(status.st_mode)) fail(path, "not a regular file, expected a token shard");
    file_bytes_ = status.st_size;

    // A short file may still have a telling start, so its magic is looked at before its length.
    Header header{};
    const ssize_t header_bytes = ::pread(file.value, header.data(), sizeof header, 0);
    if (header_bytes < 0) fail_errno(path, "read token shard");
    if (header_bytes >= 16) bytes_per_token_ = check_magic_and_version(path, header);
    if (header_bytes < shard_header_bytes) {
        fail(path, "too short for a token shard: " + std::to_string(file_bytes_) +
                       " bytes, its header alone has " + std::to_string(shard_header_bytes) + " bytes");
    }

    token_count_ = header[2];
    vocabulary_size_ = static_cast<uint32_t>(header[3]);
    tokenizer_hash_ = static_cast<uint32_t>(header[4]) | uint64_t{static_cast<uint32_t>(header[5])} << 32;
    if (token_count_ < 0) {
        fail(path, "declares " + std::to_string(token_count_) + " tokens (a shard holds at most 2147483647)");
    }
    if (token_count_ == 0) fail(path, "the shard holds zero tokens");
    check_file_size(path, token_count_, bytes_per_token_, file_bytes_);

    void* map = ::mmap(nullptr, static_cast<size_t>(file_bytes_), PROT_READ, MAP_SHARED, file.value, 0);
    if (map == MAP_FAILED) fail_errno(path, "map token shard into memory");
    map_ = static_cast<const std::byte*>(map);
}

Shard::~Shard() {
    unmap();
}

Shard::Shard(Shard&& other) noexcept
    : path_(std::move(other.path_)),
      map_(std::exchange(other.map_, nullptr)),
      file_bytes_(other.file_bytes_),
      token_count_(std::exchange(other.token_count_, 0)),
      bytes_per_token_(other.bytes_per_token_),
      vocabulary_size_(other.vocabulary_size_),
      tokenizer_hash_(other.tokenizer_hash_) {}

Shard& Shard::operator=(Shard&& other) noexcept {
    if (this == &other) return *this;
    unmap();
    path_ = std::move(other.path_);
    map_ = std::exchange(other.map_, nullptr);
    file_bytes_ = other.file_bytes_;
    token_count_ = std::exchange(other.token_count_, 0);
    bytes_per_token_ = other.bytes_per_token_;
    vocabulary_size_ = other.vocabulary_size_;
    tokenizer_hash_ = other.tokenizer_hash_;
    return *this;
}

void Shard::unmap() {
    if (map_ != nullptr) ::munmap(const_cast<std::byte*>(map_), static_cast<size_t>(file_bytes_));
    map_ = nullptr;
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
    const std::byte* address = map_ + shard_header_bytes + index * bytes_per_token_;
    uint32_t value = 0;
    std::memcpy(&value, address, static_cast<size_t>(bytes_per_token_));
    return value;
}

template <typename Token>
void Shard::copy_as(int64_t begin, int64_t count, uint32_t vocabulary_limit, int32_t* out) const {
    const Token* tokens = reinterpret_cast<const Token*>(map_ + shard_header_bytes) + begin;
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
    ::madvise(const_cast<std::byte*>(map_), static_cast<size_t>(file_bytes_),
              access == Access::random ? MADV_RANDOM : MADV_SEQUENTIAL);
}

void Shard::will_need(int64_t begin, int64_t count) const {
    check_range(begin, count);
    static const int64_t page_bytes = ::sysconf(_SC_PAGESIZE);
    const int64_t first = shard_header_bytes + begin * bytes_per_token_;
    const int64_t page = first / page_bytes * page_bytes;  // madvise wants the start of a page
    ::madvise(const_cast<std::byte*>(map_) + page,
              static_cast<size_t>(first + count * bytes_per_token_ - page), MADV_WILLNEED);
}

namespace {

void write_all(int file, const std::string& path, const void* data, size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
        // Linux writes at most about 2^31 bytes a call; smaller pieces also keep the loop honest.
        const ssize_t written = ::write(file, next, std::min(bytes, size_t{1} << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail_errno(path, "write token shard");
        next += written;
        bytes -= static_cast<size_t>(written);
    }
}

bool fits_uint16(std::span<const uint32_t> tokens, uint32_t vocabulary_size) {
    if (tokens.empty() || tokens.size() > size_t{INT32_MAX}) {
        throw std::logic_error("write_shard: a shard holds 1 to 2147483647 tokens, got " +
                               std::to_string(tokens.size()));
    }
    const auto largest = std::max_element(tokens.begin(), tokens.end());
    if (vocabulary_size != 0 && *largest >= vocabulary_size) {
        throw std::logic_error("write_shard: token " + std::to_string(largest - tokens.begin()) + " has id " +
                               std::to_string(*largest) + ", not below the vocabulary size " +
                               std::to_string(vocabulary_size));
    }
    return vocabulary_size != 0 ? vocabulary_size <= largest_uint16_vocabulary
                                : *largest < largest_uint16_vocabulary;
}

void write_contents(int file, const std::string& path, const Header& header, std::span<const uint32_t> tokens,
                    bool as_uint16) {
    write_all(file, path, header.data(), sizeof header);
    if (as_uint16) {
        const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
        write_all(file, path, narrow.data(), narrow.size() * sizeof(uint16_t));
    } else {
        write_all(file, path, tokens.data(), tokens.size_bytes());
    }
    if (::fsync(file) != 0) fail_errno(path, "flush token shard");
}

// A rename is only durable once the directory that holds the name is flushed too.
void flush_directory_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const FileDescriptor file{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (file.value >= 0) ::fsync(file.value);
}

}  // namespace

void write_shard(const std::string& path, std::span<const uint32_t> tokens, uint32_t vocabulary_size,
                 uint64_t tokenizer_hash) {
    const bool as_uint16 = fits_uint16(tokens, vocabulary_size);
    if (::access(path.c_str(), F_OK) == 0) fail(path, "exists already; remove it or choose another name");

    Header header{};
    header[0] = as_uint16 ? magic_uint16 : magic_uint32;
    header[1] = as_uint16 ? version_uint16 : version_uint32;
    header[2] = static_cast<int32_t>(tokens.size());
    header[3] = static_cast<int32_t>(vocabulary_size);
    header[4] = static_cast<int32_t>(static_cast<uint32_t>(tokenizer_hash));
    header[5] = static_cast<int32_t>(static_cast<uint32_t>(tokenizer_hash >> 32));

    const std::string temporary = path + ".partial";
    const FileDescriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (file.value < 0) fail_errno(temporary, "create token shard");
    try {
        write_contents(file.value, temporary, header, tokens, as_uint16);
        if (::rename(temporary.c_str(), path.c_str()) != 0)
            fail_errno(path, "rename token shard to its name");
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    flush_directory_of(path);
}

}  // namespace train_qat
