// SentencePiece models, by their own library.
#include <sentencepiece_processor.h>
#include <utf8proc.h>

#include <cstdint>
#include <stdexcept>

#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {
namespace {

// Takes the protobuf message of a model apart as far as its fields; of pieces (1), how it was trained (2), how it normalizes
// text (3) there must be each. SentencePiece itself takes a model that was cut between fields, with other settings, and
// an empty file. https://protobuf.dev/programming-guides/encoding/
class MessageFields {
  public:
    explicit MessageFields(const std::string& content) : content_(content) {
        while (whole_ && at_ < content.size()) {
            const uint64_t tag = number(), length = number();
            whole_ = whole_ && tag % 8 == 2 && length <= content.size() - at_;
            if (!whole_) return;
            if (tag / 8 < 8) found_ |= 1u << tag / 8;
            at_ += length;
        }
    }

    bool make_a_model() const { return whole_ && (found_ & 0b1110) == 0b1110; }

  private:
    uint64_t number() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64 && at_ < content_.size(); shift += 7) {
            const auto byte = static_cast<unsigned char>(content_[at_++]);
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
        whole_ = false;
        return 0;
    }

    const std::string& content_;
    size_t at_ = 0;
    bool whole_ = true;
    unsigned found_ = 0;
};

bool is_utf8(const std::string& text) {
    return utf8proc_decompose(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                              static_cast<utf8proc_ssize_t>(text.size()), nullptr, 0,
                              static_cast<utf8proc_option_t>(0)) >= 0;
}

class SentencePieceModel final : public TokenizerModel {
  public:
    SentencePieceModel(const std::string& path, const std::string& content) : path_(path) {
        if (content.empty()) refuse("is empty: ");
        if (!MessageFields(content).make_a_model() || !processor_.LoadFromSerializedProto(content).ok() ||
            processor_.GetPieceSize() == 0)
            refuse("");
        for (int id = 0; id < processor_.GetPieceSize(); ++id)
            if (!is_utf8(processor_.IdToPiece(id))) refuse("piece " + std::to_string(id) + " is not UTF-8: ");
    }

    uint32_t vocabulary_size() const override { return static_cast<uint32_t>(processor_.GetPieceSize()); }
    int32_t bos_id() const override { return processor_.bos_id(); }
    int32_t eos_id() const override { return processor_.eos_id(); }

    std::vector<int32_t> encode(const std::string& text) const override {
        std::vector<int> ids;
        const auto status = processor_.Encode(text, &ids);
        if (!status.ok()) throw std::runtime_error(path_ + ": cannot encode: " + status.ToString());
        return {ids.begin(), ids.end()};
    }

    std::string decode(const std::vector<int32_t>& ids) const override {
        std::string text;
        const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
        if (!status.ok()) throw std::runtime_error(path_ + ": cannot decode: " + status.ToString());
        return text;
    }

    int64_t bytes_of(int32_t id) const override {
        if (processor_.IsControl(id)) return 0;
        if (processor_.IsByte(id)) return 1;
        static const std::string space = "\xe2\x96\x81";  // U+2581 stands for a space
        const std::string& piece = processor_.IdToPiece(id);
        auto bytes = static_cast<int64_t>(piece.size());
        for (size_t at = piece.find(space); at != std::string::npos;
             at = piece.find(space, at + space.size()))
            bytes -= static_cast<int64_t>(space.size()) - 1;
        return bytes;
    }

  private:
    [[noreturn]] void refuse(const std::string& why) const {
        throw std::runtime_error(path_ + ": " + why +
                                 "not a SentencePiece model (or one that is damaged or cut short), nor a "
                                 "tokenizer.json; data/prepare.py makes a model (.model)");
    }

    std::string path_;
    sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<TokenizerModel> open_sentencepiece(const std::string& path, const std::string& content) {
    return std::make_unique<SentencePieceModel>(path, content);
}

}  // namespace train_qat
