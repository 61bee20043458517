// Sampler: how often each token is drawn, and which never.
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "model/generation/sampler.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/errors.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr int draws = 4000;

std::vector<int> counts_of(const SamplingOptions& options, const std::vector<float>& logits) {
    Sampler sampler(options);
    std::vector<int> counts(logits.size(), 0);
    for (int draw = 0; draw < draws; ++draw) ++counts[sampler.draw(logits)];
    return counts;
}

// Each token as often as its weight among all says, within five deviations.
void check_shares(const std::vector<int>& counts, const std::vector<double>& weights) {
    double sum = 0;
    for (double weight : weights) sum += weight;
    for (size_t v = 0; v < counts.size(); ++v) {
        const double p = weights[v] / sum;
        INFO("token " << v << ": " << counts[v] << " of " << draws << ", probability " << p);
        CHECK(std::abs(counts[v] - draws * p) <= 5 * std::sqrt(draws * p * (1 - p)));
    }
}

std::vector<double> weights_of(const std::vector<float>& logits, double temperature) {
    std::vector<double> weights;
    for (float logit : logits) weights.push_back(std::exp(logit / temperature));
    return weights;
}

const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 1.0f, 2.0f, -3.0f};

}  // namespace

TEST_CASE("without temperature the likeliest token is drawn, the lowest of several",
          "[sampler][generation]") {
    Sampler sampler({.temperature = 0, .top_k = 3, .top_p = 0.5});
    for (int i = 0; i < 5; ++i) CHECK(sampler.draw(logits) == 1);
}

TEST_CASE("tokens are drawn with probability softmax(logits / temperature)", "[sampler][generation]") {
    for (double temperature : {0.5, 1.0, 3.0})
        check_shares(counts_of({.temperature = temperature}, logits), weights_of(logits, temperature));
}

TEST_CASE("top_k leaves the likeliest tokens", "[sampler][generation]") {
    std::vector<double> weights = weights_of(logits, 1);
    weights[2] = weights[5] = weights[0] = 0;
    check_shares(counts_of({.temperature = 1, .top_k = 3}, logits), weights);
    // Of equally likely ones the lowest.
    CHECK(counts_of({.temperature = 1, .top_k = 1}, logits)[1] == draws);
    check_shares(counts_of({.temperature = 1, .top_k = 100}, logits), weights_of(logits, 1));
}

TEST_CASE("top_p leaves the fewest likeliest tokens that have its probability", "[sampler][generation]") {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    const std::vector<float> halves = {std::log(0.125f), std::log(0.5f), std::log(0.125f), std::log(0.25f)};
    check_shares(counts_of({.temperature = 1, .top_p = 0.49}, halves), {0, 1, 0, 0});
    check_shares(counts_of({.temperature = 1, .top_p = 0.7}, halves), {0, 2, 0, 1});
    check_shares(counts_of({.temperature = 1, .top_p = 0.8}, halves), {1, 4, 0, 2});
    check_shares(counts_of({.temperature = 1, .top_p = 0.999}, halves), {1, 4, 1, 2});
    // Of the probability that top_k leaves: 2/3 and 1/3.
    check_shares(counts_of({.temperature = 1, .top_k = 2, .top_p = 0.6}, halves), {0, 1, 0, 0});
    check_shares(counts_of({.temperature = 1, .top_k = 2, .top_p = 0.7}, halves), {0, 2, 0, 1});
}

TEST_CASE("seeds decide what is drawn", "[sampler][generation]") {
    const auto sequence = [](uint64_t seed) {
        Sampler sampler({.temperature = 1, .seed = seed});
        std::vector<int32_t> tokens;
        for (int i = 0; i < 30; ++i) tokens.push_back(sampler.draw(logits));
        return tokens;
    };
    CHECK(sequence(1) == sequence(1));
    CHECK(sequence(1) != sequence(2));
}

TEST_CASE("logits that are no numbers are refused", "[sampler][generation]") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const SamplingOptions& options :
         {SamplingOptions{.temperature = 0}, SamplingOptions{.temperature = 1},
          SamplingOptions{.temperature = 1, .top_k = 2}, SamplingOptions{.temperature = 1, .top_p = 0.5}}) {
        Sampler sampler(options);
        for (const auto& [bad, name] :
             {std::pair(nan, "NaN"), std::pair(HUGE_VALF, "infinite"), std::pair(-HUGE_VALF, "infinite")})
            for (size_t at = 0; at < 3; ++at) {  // wherever the largest is
                std::vector<float> spoilt = {0.5f, 2.0f, 1.0f};
                spoilt[at] = bad;
                const std::string error = error_of([&] { sampler.draw(spoilt); });
                CHECK(error.find("logit of token " + std::to_string(at) + " is " + name) !=
                      std::string::npos);
            }
    }
}
