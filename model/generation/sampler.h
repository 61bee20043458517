// Draws tokens from logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace train_qat {

struct SamplingOptions {
    double temperature = 0.8;  // 0: the likeliest token
    int64_t top_k = 0;         // only the k likeliest tokens; 0: all
    double top_p = 1;          // only the likeliest tokens that together have this probability; 1: all
    uint64_t seed = 1;
};

class Sampler {
  public:
    explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}

    // A token with probability softmax(logits / temperature), of the top_k likeliest, and of these of the fewest that reach
    // top_p of their probability (arXiv 1904.09751). Of equally likely tokens the lowest goes first. std::runtime_error that
    // names the first logit that is not finite.
    int32_t draw(std::span<const float> logits);

  private:
    // Leaves the likeliest tokens that the options allow, likeliest first.
    void keep_likeliest(std::span<const float> logits);

    SamplingOptions options_;
    std::mt19937_64 random_;
    std::vector<int32_t> tokens_;
    std::vector<double> cumulative_;
};

}  // namespace train_qat
