// Numbers and times as people read and write them.
#pragma once

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <system_error>

namespace train_qat {

// The number that all of `text` is; nothing for anything else, and for one that does not fit into Number.
// "+1" is a number, " 1" is none; "inf", "nan" and "1e-3" are floating-point numbers.
template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
    const bool has_plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
    const char* const end = text.data() + text.size();
    Number number{};
    const auto [rest, error] = std::from_chars(text.data() + (has_plus ? 1 : 0), end, number);
    if (error != std::errc() || rest != end) return std::nullopt;
    return number;
}

// Reads "396M", "1.5M", "8B", "1.4T", "120000": a plain or decimal number and K, M, B or T (10^3 to 10^12,
// either case). Throws std::runtime_error starting with the flag, for example "-tokens: cannot read '8X':
// ...", unless the result is a whole number from 1 to 9.2e18.
int64_t parse_count(const std::string& text, const std::string& flag);

// "13.8M", "8.0B", "999": one decimal and a suffix from 1,000 on.
std::string format_count(int64_t count);

// "13,767,552".
std::string format_exact(int64_t count);

// "1.5 MB", decimal units.
std::string format_bytes(int64_t bytes);

// "8.2s", "3m12s", "1h02m", "2d03h"; "?" for what is no duration.
std::string format_duration(double seconds);

double seconds_since(std::chrono::steady_clock::time_point start);

// The time now: "2025-01-31T12:00:00Z".
std::string utc_time();

// With blanks for line ends, and none at the end: errors must fit a line.
std::string one_line(std::string text);

// printf's formats into a string. At most 511 characters; a longer result is cut.
template <typename... Values>
std::string formatted(const char* format, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    return text;
}

}  // namespace train_qat
