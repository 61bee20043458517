// SentencePiece models, by their own library.
#include <sentencepiece_processor.h>

#include <stdexcept>

#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {
namespace {

class SentencePieceModel final : public TokenizerModel {
  public:
    SentencePieceModel(const std::string& path, const std::string& content) : path_(path) {
        // SentencePiece accepts an empty file as a model without pieces, hence the second condition.
        if (!processor_.LoadFromSerializedProto(content).ok() || processor_.GetPieceSize() == 0)
            throw std::runtime_error(path +
                                     ": not a SentencePiece model; data/prepare.py makes one (.model)");
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
    std::string path_;
    sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<TokenizerModel> open_sentencepiece(const std::string& path, const std::string& content) {
    return std::make_unique<SentencePieceModel>(path, content);
}

}  // namespace train_qat
