#include "model/generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

namespace train_qat {

namespace {

void check_finite(std::span<const float> logits) {
    const auto bad =
        std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
    if (bad == logits.end()) return;
    throw std::runtime_error("sampling: the model's logit of token " + std::to_string(bad - logits.begin()) +
                             " is " + (std::isnan(*bad) ? "NaN" : "infinite") +
                             "; its weights are damaged, or too large for its arithmetic");
}

}  // namespace

int32_t Sampler::draw(std::span<const float> logits) {
    if (logits.empty()) throw std::logic_error("Sampler: no logits");
    check_finite(logits);  // of a comparison with NaN nothing can be told
    const auto likeliest = std::max_element(logits.begin(), logits.end());
    if (options_.temperature == 0) return static_cast<int32_t>(likeliest - logits.begin());

    tokens_.resize(logits.size());
    std::iota(tokens_.begin(), tokens_.end(), 0);
    if (options_.top_k > 0 || options_.top_p < 1) keep_likeliest(logits);
    cumulative_.resize(tokens_.size());
    double sum = 0;
    for (size_t i = 0; i < tokens_.size(); ++i)
        cumulative_[i] = sum +=
            std::exp((static_cast<double>(logits[tokens_[i]]) - *likeliest) / options_.temperature);
    if (options_.top_p < 1) {
        // The first that reaches it is kept too.
        const auto end = std::lower_bound(cumulative_.begin(), cumulative_.end(), options_.top_p * sum);
        cumulative_.resize(std::min<size_t>(end - cumulative_.begin() + 1, cumulative_.size()));
        sum = cumulative_.back();
    }
    const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
    const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), uniform * sum);
    return tokens_[std::min<size_t>(found - cumulative_.begin(), cumulative_.size() - 1)];
}

void Sampler::keep_likeliest(std::span<const float> logits) {
    const auto likelier = [&](int32_t a, int32_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    const int64_t all = std::ssize(tokens_);
    const int64_t kept = options_.top_k > 0 ? std::min(options_.top_k, all) : all;
    std::partial_sort(tokens_.begin(), tokens_.begin() + kept, tokens_.end(), likelier);
    tokens_.resize(static_cast<size_t>(kept));
}

}  // namespace train_qat
