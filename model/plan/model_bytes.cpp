#include "model/plan/model_bytes.h"

#include <cmath>
#include <stdexcept>

#include "model/quantizer.h"
#include "model/units.h"

namespace train_qat {
namespace {

// Of the block linears and of the embedding and head together.
int64_t scale_count(const ModelConfig& config, int64_t group) {
    const int64_t matrix_weights = linear_parameter_count(config) + embedding_parameter_count(config);
    if (group > 0) return matrix_weights / group;
    const int64_t query_rows = config.heads * config.head_dim, kv_rows = config.kv_heads * config.head_dim;
    const int64_t attention_rows = query_rows + 2 * kv_rows + config.width;
    const int64_t feed_forward_rows = 2 * config.ffn + config.width;
    const int64_t embedding_rows = embedding_parameter_count(config) / config.width;
    return embedding_rows + config.layers * (attention_rows + feed_forward_rows);
}

}  // namespace

bool fits_group(const ModelConfig& config, int64_t group) {
    return group == 0 || (config.width % group == 0 && config.heads * config.head_dim % group == 0 &&
                          config.ffn % group == 0);
}

int64_t packed_model_bytes(const ModelConfig& config, double bits, int64_t group) {
    grid_of_bits(bits);
    if (!fits_group(config, group)) throw std::logic_error("packed_model_bytes: groups that cross rows");
    const auto linears = static_cast<double>(linear_parameter_count(config));
    const auto embedding = static_cast<double>(embedding_parameter_count(config));
    const auto vectors = static_cast<double>(vector_parameter_count(config));
    const double scales = bits < 16 ? static_cast<double>(scale_count(config, group)) : 0;
    const double all_bits = bits * linears + embedding_bits(bits) * embedding + 16 * scales + 32 * vectors;
    return static_cast<int64_t>(std::ceil(all_bits / 8));
}

int64_t parse_bytes(const std::string& text, const std::string& flag) {
    const bool has_unit = text.size() > 1 && (text.back() == 'B' || text.back() == 'b') &&
                          std::string("KMGTkmgt").find(text[text.size() - 2]) != std::string::npos;
    std::string count = has_unit ? text.substr(0, text.size() - 1) : text;
    const bool giga = has_unit && (count.back() == 'G' || count.back() == 'g');
    if (giga) count.back() = 'B';
    const bool plain = !count.empty() && count.find_first_not_of("0123456789.") == std::string::npos;
    try {
        if (has_unit || plain) return parse_count(count, flag);
    } catch (const std::runtime_error&) {
    }
    throw std::runtime_error(flag + ": cannot read '" + text +
                             "': expected a size such as 500MB, 1.5GB or a number of bytes");
}

}  // namespace train_qat
