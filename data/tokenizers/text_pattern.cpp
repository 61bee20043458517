#include "data/tokenizers/text_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <stdexcept>

namespace train_qat {
namespace {

std::string message_of(int error) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof text);
    return reinterpret_cast<const char*>(text);
}

}  // namespace

TextPattern::TextPattern(const std::string& expression) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* const code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                           PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
    if (code == nullptr)
        throw std::runtime_error("the pattern '" + expression + "' cannot be read: " + message_of(error) +
                                 " at its byte " + std::to_string(offset));
    code_ = std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where the platform has it
}

void TextPattern::divide(std::string_view text, const std::function<void(std::string_view)>& piece) const {
    const auto* const code = static_cast<const pcre2_code*>(code_.get());
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
    size_t done = 0, from = 0;
    while (from <= text.size()) {
        // The text is checked once, with the first match.
        const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                      from > 0 ? PCRE2_NO_UTF_CHECK : 0, match.get(), nullptr);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) throw std::runtime_error("text that cannot be divided: " + message_of(found));
        const PCRE2_SIZE* const place = pcre2_get_ovector_pointer(match.get());
        if (place[1] == place[0]) {  // matches of nothing divide nothing
            from = place[1] + 1;
            while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80) ++from;
            continue;
        }
        if (place[0] > done) piece(text.substr(done, place[0] - done));
        piece(text.substr(place[0], place[1] - place[0]));
        done = from = place[1];
    }
    if (done < text.size()) piece(text.substr(done));
}

std::string literal_expression(const std::string& literal) {
    std::string expression;
    for (const char c : literal) {
        const bool plain =
            static_cast<unsigned char>(c) >= 0x80 || std::isalnum(static_cast<unsigned char>(c));
        if (!plain) expression += '\\';
        expression += c;
    }
    return expression;
}

}  // namespace train_qat
