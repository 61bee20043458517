// Texts that users and files give: numbers in them, and errors that must fit a line.
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace train_qat {

// The number that all of `text` is; nothing for anything else. "+1" and "1e-3" are numbers, " 1" is none.
template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
    const bool has_plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
    const char* const begin = text.data() + (has_plus ? 1 : 0);
    const char* const end = text.data() + text.size();
    Number number{};
    const auto [rest, error] = std::from_chars(begin, end, number);
    if (error != std::errc() || rest != end) return std::nullopt;
    return number;
}

// With blanks for line ends, and none at the end.
std::string one_line(std::string text);

}  // namespace train_qat
