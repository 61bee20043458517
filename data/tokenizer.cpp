#include "data/tokenizer.h"

#include <utf8proc.h>

#include <filesystem>
#include <stdexcept>

#include "data/begin_and_end.h"
#include "data/file_bytes.h"
#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {
namespace {

std::string read_model(const std::string& path) {
    return read_file(path, "the tokenizer model", "data/prepare.py makes one beside the shards (.model)");
}

// What a file holds says what it is, never its name; data/prepare/tokenizer_files.py goes by the same. A SentencePiece model
// is a binary message and begins with the byte of its first field, never with a brace.
bool is_json(const std::string& content) {
    const size_t mark = content.compare(0, 3, "\xef\xbb\xbf") == 0 ? 3 : 0;
    const size_t begin = content.find_first_not_of(" \t\r\n", mark);
    return begin != std::string::npos && content[begin] == '{';
}

}  // namespace

bool is_utf8(const std::string& text) {
    const auto* const bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto size = static_cast<utf8proc_ssize_t>(text.size());
    utf8proc_int32_t character = 0;
    for (utf8proc_ssize_t at = 0, length = 0; at < size; at += length) {
        length = utf8proc_iterate(bytes + at, size - at, &character);
        if (length <= 0) return false;
    }
    return true;
}

std::string tokenizer_file(const std::string& path) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (!fs::is_directory(path, ignored)) return path;
    for (const char* name : {"tokenizer.json", "tokenizer.model"})
        if (fs::exists(fs::path(path) / name, ignored)) return (fs::path(path) / name).string();
    throw std::runtime_error(path + ": holds neither a tokenizer.json nor a tokenizer.model");
}

Tokenizer::Tokenizer(const std::string& path) : path_(tokenizer_file(path)) {
    const std::string content = read_model(path_);
    model_ = is_json(content) ? open_byte_level(path_, content, begin_and_end_beside(path_))
                              : open_sentencepiece(path_, content);
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&& other) noexcept = default;

uint32_t Tokenizer::vocabulary_size() const {
    return model_->vocabulary_size();
}
int32_t Tokenizer::bos_id() const {
    return model_->bos_id();
}
int32_t Tokenizer::eos_id() const {
    return model_->eos_id();
}

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
    return model_->encode(text);
}

void Tokenizer::check_id(int32_t id) const {
    const auto size = static_cast<int32_t>(vocabulary_size());
    if (id < 0 || id >= size)
        throw std::runtime_error(path_ + ": token id " + std::to_string(id) +
                                 " is outside its vocabulary of " + std::to_string(size));
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
    for (const int32_t id : ids) check_id(id);
    return model_->decode(ids);
}

int64_t Tokenizer::bytes_of(int32_t id) const {
    check_id(id);
    return model_->bytes_of(id);
}

uint64_t tokenizer_hash(const std::string& path) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char byte : read_model(tokenizer_file(path)))
        hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    return hash;
}

}  // namespace train_qat
