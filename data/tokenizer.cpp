#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace train_qat {
namespace {

[[noreturn]] void fail_to_read(const std::string& path) {
    const int error = errno;
    throw std::runtime_error(path + ": cannot read the tokenizer model: " + std::strerror(error) +
                             "; data/prepare.py makes one beside the shards (.model)");
}

std::string read_file(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
    if (!file) fail_to_read(path);
    std::string bytes;
    char buffer[1 << 16];
    while (const size_t count = std::fread(buffer, 1, sizeof buffer, file.get())) bytes.append(buffer, count);
    if (std::ferror(file.get())) fail_to_read(path);
    return bytes;
}

}  // namespace

struct Tokenizer::Model {
    std::string path;
    sentencepiece::SentencePieceProcessor processor;
};

Tokenizer::Tokenizer(const std::string& path) : model_(std::make_unique<Model>()) {
    model_->path = path;
    const std::string bytes = read_file(path);
    // SentencePiece accepts an empty file as a model without pieces, hence the second condition.
    if (!model_->processor.LoadFromSerializedProto(bytes).ok() || model_->processor.GetPieceSize() == 0) {
        throw std::runtime_error(path + ": not a SentencePiece model; data/prepare.py makes one (.model)");
    }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&& other) noexcept = default;

uint32_t Tokenizer::vocabulary_size() const {
    return static_cast<uint32_t>(model_->processor.GetPieceSize());
}

int32_t Tokenizer::bos_id() const {
    return model_->processor.bos_id();
}
int32_t Tokenizer::eos_id() const {
    return model_->processor.eos_id();
}

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
    std::vector<int> ids;
    const auto status = model_->processor.Encode(text, &ids);
    if (!status.ok()) throw std::runtime_error(model_->path + ": cannot encode: " + status.ToString());
    return {ids.begin(), ids.end()};
}

void Tokenizer::check_id(int32_t id) const {
    const auto size = static_cast<int32_t>(vocabulary_size());
    if (id < 0 || id >= size)
        throw std::runtime_error(model_->path + ": token id " + std::to_string(id) +
                                 " is outside its vocabulary of " + std::to_string(size));
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
    for (const int32_t id : ids) check_id(id);
    std::string text;
    const auto status = model_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    if (!status.ok()) throw std::runtime_error(model_->path + ": cannot decode: " + status.ToString());
    return text;
}

int64_t Tokenizer::bytes_of(int32_t id) const {
    const auto& processor = model_->processor;
    check_id(id);
    if (processor.IsControl(id)) return 0;
    if (processor.IsByte(id)) return 1;
    static const std::string space = "\xe2\x96\x81";  // U+2581 stands for a space
    const std::string& piece = processor.IdToPiece(id);
    auto bytes = static_cast<int64_t>(piece.size());
    for (size_t at = piece.find(space); at != std::string::npos; at = piece.find(space, at + space.size()))
        bytes -= static_cast<int64_t>(space.size()) - 1;
    return bytes;
}

uint64_t tokenizer_hash(const std::string& path) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char byte : read_file(path)) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    return hash;
}

}  // namespace train_qat
