#include "model/units.h"

#include <array>
#include <cmath>
#include <ctime>
#include <stdexcept>
#include <string_view>

namespace train_qat {

namespace {

// "1.5" and the suffix of its power of 1,000; a whole number below 1,000.
std::string scaled(int64_t number, const std::array<const char*, 5>& suffixes) {
    double value = static_cast<double>(number);
    size_t power = 0;
    // 999.95 would print as "1000.0": take the next suffix instead.
    while (std::abs(value) >= 999.95 && power + 1 < suffixes.size()) {
        value /= 1000.0;
        ++power;
    }
    return formatted("%.*f%s", power == 0 ? 0 : 1, value, suffixes[power]);
}

}  // namespace

int64_t parse_count(const std::string& text, const std::string& flag) {
    const auto refuse = [&](const char* reason) {
        throw std::runtime_error(flag + ": cannot read '" + text + "': " + reason);
    };
    const char* shape = "expected a count such as 120000, 396M or 1.5B (suffix K, M, B or T)";
    const char* end = text.data() + text.size();
    // from_chars would also take a sign, "inf" and "nan".
    if (text.empty() || (text[0] != '.' && (text[0] < '0' || text[0] > '9'))) refuse(shape);
    double value = 0.0;
    const auto [rest, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
    if (error == std::errc::result_out_of_range) refuse("too large");
    if (error != std::errc() || end - rest > 1) refuse(shape);
    double unit = 1.0;
    if (rest != end) {
        constexpr std::array<double, 8> units = {1e3, 1e3, 1e6, 1e6, 1e9, 1e9, 1e12, 1e12};
        const size_t suffix = std::string_view("kKmMbBtT").find(*rest);
        if (suffix >= units.size()) refuse(shape);
        unit = units[suffix];
    }
    const double count = value * unit;
    if (count > 9.2e18) refuse("too large");
    const double whole = std::round(count);
    if (whole < 1.0) refuse("must be at least 1");
    // Decimal fractions such as 1.1B are not exact in binary: allow their rounding error, not half a token.
    if (std::abs(count - whole) > 1e-12 * whole + 1e-9) refuse("is not a whole number");
    return static_cast<int64_t>(whole);
}

std::string format_count(int64_t count) {
    return scaled(count, {"", "K", "M", "B", "T"});
}

std::string format_exact(int64_t count) {
    const std::string digits = std::to_string(count);
    std::string text;
    for (size_t position = 0; position < digits.size(); ++position) {
        const size_t left = digits.size() - position;
        if (position > 0 && left % 3 == 0 && digits[position - 1] != '-') text += ',';
        text += digits[position];
    }
    return text;
}

std::string format_bytes(int64_t bytes) {
    return scaled(bytes, {" bytes", " kB", " MB", " GB", " TB"});
}

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string format_duration(double seconds) {
    if (!(seconds >= 0) || seconds > 1e12) return "?";
    if (seconds < 59.95) return formatted("%.1fs", seconds);
    const int64_t whole = std::llround(seconds);
    if (whole < 3600)
        return formatted("%lldm%02llds", static_cast<long long>(whole / 60),
                         static_cast<long long>(whole % 60));
    const int64_t minutes = std::llround(seconds / 60);
    if (minutes < 24 * 60)
        return formatted("%lldh%02lldm", static_cast<long long>(minutes / 60),
                         static_cast<long long>(minutes % 60));
    const int64_t hours = std::llround(seconds / 3600);
    return formatted("%lldd%02lldh", static_cast<long long>(hours / 24), static_cast<long long>(hours % 24));
}

std::string utc_time() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

std::string one_line(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\r') c = ' ';
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text;
}

}  // namespace train_qat
