#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

namespace train_qat {

namespace {

// A token with probability softmax(logits / temperature). `uniform` in [0, 1).
int32_t sample_token(const std::vector<float>& logits, double temperature, double uniform) {
    const auto likeliest = std::max_element(logits.begin(), logits.end());
    if (temperature == 0) return static_cast<int32_t>(likeliest - logits.begin());
    std::vector<double> cumulative(logits.size());
    double sum = 0;
    for (size_t v = 0; v < logits.size(); ++v)
        cumulative[v] = sum += std::exp((static_cast<double>(logits[v]) - *likeliest) / temperature);
    const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * sum);
    return static_cast<int32_t>(std::min<size_t>(found - cumulative.begin(), logits.size() - 1));
}

}  // namespace

std::vector<int32_t> generate(Transformer& model, std::vector<int32_t> prompt,
                              const SamplingOptions& options) {
    if (prompt.empty()) throw std::logic_error("generate: needs a prompt of at least one token");
    std::mt19937_64 random(options.seed);
    std::vector<float> logits(model.config().vocabulary);
    for (int64_t i = 0; i < options.tokens; ++i) {
        const int64_t positions =
            std::min(static_cast<int64_t>(prompt.size()), model.config().sequence_length);
        model.logits(&prompt[prompt.size() - positions], positions - 1, positions, logits.data());
        const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
        const int32_t token = sample_token(logits, options.temperature, uniform);
        if (token == options.end_token) break;
        prompt.push_back(token);
    }
    return prompt;
}

}  // namespace train_qat
