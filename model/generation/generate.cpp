#include "model/generation/generate.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {

namespace {

using Clock = std::chrono::steady_clock;

// The tokens that a decoder begins with: all, or those that leave half of its positions.
std::span<const int32_t> fitting(const std::vector<int32_t>& tokens, int64_t capacity, bool all_may_fit) {
    const auto size = std::ssize(tokens);
    const int64_t count = all_may_fit && size <= capacity ? size : std::max<int64_t>(1, capacity / 2);
    return std::span(tokens).last(static_cast<size_t>(std::min<int64_t>(count, size)));
}

}  // namespace

Generation generate(Decoder& decoder, const std::vector<int32_t>& prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& on_token) {
    if (prompt.empty()) throw std::logic_error("generate: needs a prompt of at least one token");
    Generation result;
    Sampler sampler(options.sampling);
    std::vector<float> logits(static_cast<size_t>(decoder.config().vocabulary));
    const auto drawable =
        std::span(logits).first(options.vocabulary > 0 ? options.vocabulary : logits.size());
    std::vector<int32_t> tokens = prompt;

    Clock::time_point start = Clock::now();
    decoder.forget();
    const std::span<const int32_t> begin = fitting(tokens, decoder.capacity(), true);
    result.prompt_tokens = std::ssize(begin);
    decoder.read(begin, logits);
    result.prompt_seconds = seconds_since(start);

    double positions = 0;
    for (int64_t i = 0; i < options.tokens && !(options.stop && options.stop()); ++i) {
        start = Clock::now();
        if (i > 0 && decoder.position() == decoder.capacity()) {
            decoder.forget();
            decoder.read(fitting(tokens, decoder.capacity(), false), logits);
            ++result.times_reread;
        } else if (i > 0) {
            positions += static_cast<double>(decoder.position());
            decoder.read({&tokens.back(), 1}, logits);
            ++result.steps;
        }
        const int32_t token = sampler.draw(drawable);
        if (i > 0) result.step_seconds += seconds_since(start);
        if (token == options.end_token) break;
        tokens.push_back(token);
        if (on_token) on_token(token);
    }
    result.mean_position = result.steps > 0 ? positions / static_cast<double>(result.steps) : 0;
    result.tokens.assign(tokens.begin() + std::ssize(prompt), tokens.end());
    return result;
}

}  // namespace train_qat
