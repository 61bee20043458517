#include "data/text_stream.h"

namespace train_qat {

namespace {

// Whether the text ends within a character, or with the sign that stands for such an end.
bool ends_within_character(const std::string& text) {
    if (text.ends_with("\xEF\xBF\xBD")) return true;
    // UTF-8: the first byte of a character of n bytes begins with n ones; all others begin with 10.
    for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
        const auto byte = static_cast<unsigned char>(text[text.size() - back]);
        if (byte < 0x80) return false;
        if (byte < 0xC0) continue;
        const size_t bytes = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
        return back < bytes;
    }
    return false;
}

}  // namespace

std::string TextStream::behind_written() const {
    const std::string before = tokenizer_.decode({tokens_.begin(), tokens_.begin() + written_});
    const std::string all = tokenizer_.decode(tokens_);
    // A begin of a character at the end of what is written would be another text with its rest.
    return all.size() > before.size() ? all.substr(before.size()) : std::string();
}

std::string TextStream::add(const std::vector<int32_t>& tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    const std::string text = behind_written();
    if (text.empty() || ends_within_character(text)) return "";
    tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(written_));
    written_ = tokens_.size();
    return text;
}

std::string TextStream::finish() {
    const std::string text = behind_written();
    tokens_.clear();
    written_ = 0;
    return text;
}

}  // namespace train_qat
