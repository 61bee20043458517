#include "model/config.h"

#include <array>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "model/format.h"

namespace train_qat {
namespace {

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error(message);
}

std::string percent(double part, double whole) {
    return formatted("%.1f%%", 100.0 * part / whole);
}

}  // namespace

int64_t embedding_parameter_count(const ModelConfig& config) {
    return config.vocabulary * config.width;
}

int64_t linear_parameter_count(const ModelConfig& config) {
    const int64_t query_and_output = 2 * config.heads * config.head_dim * config.width;
    const int64_t key_and_value = 2 * config.kv_heads * config.head_dim * config.width;
    return config.layers * (query_and_output + key_and_value + 3 * config.ffn * config.width);
}

int64_t parameter_count(const ModelConfig& config) {
    const int64_t norms = (2 * config.layers + 1) * config.width;
    return embedding_parameter_count(config) + linear_parameter_count(config) + norms;
}

double forward_flops_per_token(const ModelConfig& config) {
    const double weights = static_cast<double>(linear_parameter_count(config)) +
                           static_cast<double>(embedding_parameter_count(config));
    const double attended = static_cast<double>(config.sequence_length) / 2.0;
    return 2.0 * weights +
           4.0 * static_cast<double>(config.layers * config.heads * config.head_dim) * attended;
}

double training_flops_per_token(const ModelConfig& config) {
    return 3.0 * forward_flops_per_token(config);
}

std::string describe(const ModelConfig& config) {
    const auto total = static_cast<double>(parameter_count(config));
    const auto embedding = static_cast<double>(embedding_parameter_count(config));
    const auto linears = static_cast<double>(linear_parameter_count(config));
    const auto row = [](const char* name, const std::string& value) {
        return formatted("  %-16s %s\n", name, value.c_str());
    };
    std::string text = "model " + config.name;
    if (config.requested_parameters > 0) {
        const double deviation = total / static_cast<double>(config.requested_parameters) - 1.0;
        text += formatted(" (%+.2f%% of the size asked for%s)", 100.0 * deviation,
                          std::abs(deviation) > size_tolerance
                              ? ", the nearest that the vocabulary and the fixed "
                                "values permit"
                              : "");
    }
    text += "\n";
    text += row("layers", std::to_string(config.layers));
    text += row("width", std::to_string(config.width));
    text += row("heads", std::to_string(config.heads) + " x " + std::to_string(config.head_dim));
    text += row("kv heads", std::to_string(config.kv_heads));
    text += row("ffn", std::to_string(config.ffn));
    text += row("vocabulary", std::to_string(config.vocabulary));
    text += row("sequence length", std::to_string(config.sequence_length));
    text += row("parameters",
                format_exact(parameter_count(config)) + " (" + format_count(parameter_count(config)) + ")");
    text += row("  embedding", format_exact(embedding_parameter_count(config)) + " (" +
                                   percent(embedding, total) + ", tied to the output head)");
    text +=
        row("  linears", format_exact(linear_parameter_count(config)) + " (" + percent(linears, total) + ")");
    text += row("training", formatted("%.3g GFLOP per token", training_flops_per_token(config) / 1e9));
    if (embedding > 0.5 * total) {
        text +=
            "  the embedding takes most of the parameters: a smaller vocabulary leaves more to the layers\n";
    }
    return text;
}

int64_t parse_count(const std::string& text, const std::string& flag) {
    const auto refuse = [&](const char* reason) { fail(flag + ": cannot read '" + text + "': " + reason); };
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
        switch (*rest) {
            case 'k':
            case 'K':
                unit = 1e3;
                break;
            case 'm':
            case 'M':
                unit = 1e6;
                break;
            case 'b':
            case 'B':
                unit = 1e9;
                break;
            case 't':
            case 'T':
                unit = 1e12;
                break;
            default:
                refuse(shape);
        }
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
    const double value = static_cast<double>(count);
    constexpr std::array<const char*, 5> suffixes = {"", "K", "M", "B", "T"};
    if (std::abs(value) < 1000.0) return std::to_string(count);
    double scaled = value;
    size_t suffix = 0;
    // 999.95 would print as "1000.0": take the next suffix instead.
    while (std::abs(scaled) >= 999.95 && suffix + 1 < suffixes.size()) {
        scaled /= 1000.0;
        ++suffix;
    }
    return formatted("%.1f", scaled) + suffixes[suffix];
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

}  // namespace train_qat
