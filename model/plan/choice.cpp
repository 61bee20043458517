#include "model/plan/choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "model/plan/model_bytes.h"
#include "model/plan/plan.h"
#include "model/units.h"

namespace train_qat {
namespace {

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error(message);
}

std::vector<double> candidate_bits(const ChoiceRequest& request) {
    if (request.bits) return {*request.bits};
    const std::vector<double>& fitted = request.law->fitted.bits;
    std::vector<double> bits;
    for (const double choosable : choosable_bits)
        if (choosable >= fitted.front() && choosable <= fitted.back()) bits.push_back(choosable);
    if (bits.empty())
        fail("-b auto: " + request.law->path + " was fitted on " + format_bits(fitted.front()) + " to " +
             format_bits(fitted.back()) +
             " bits, and none of 1, 1.58, 2, 3, 4, 5, 6 and 8 lies between; give -b");
    return bits;
}

// Completes a candidate with its fraction and loss; false when the law predicts none.
bool predict_loss(const ChoiceRequest& request, Candidate& candidate) {
    const ScalingLaw& law = *request.law;
    const auto parameters = static_cast<double>(parameter_count(candidate.config));
    const double tokens = static_cast<double>(candidate.steps) * static_cast<double>(request.tokens_per_step);
    law.check_size(parameters);
    if (candidate.bits == 16) {
        if (!law.fitted.full_precision)
            fail("-b 16: " + law.path + " was fitted on no run in full precision; give fewer bits");
        candidate.loss = full_precision_loss(law.coefficients, parameters, tokens);
        return true;
    }
    const std::optional<double> fraction = request.qat_fraction
                                               ? request.qat_fraction
                                               : law.optimal_fraction(parameters, tokens, candidate.bits);
    if (!fraction) return false;
    candidate.fraction = *fraction;
    candidate.loss = quantized_loss(law.coefficients, parameters, (1 - *fraction) * tokens,
                                    *fraction * tokens, candidate.bits);
    return std::isfinite(candidate.loss);
}

// Takes the candidate if it fits and is better than what there is.
void consider(const ChoiceRequest& request, Candidate candidate, Choice::OfBits& of_bits) {
    candidate.bits = of_bits.bits;
    candidate.bytes = packed_model_bytes(candidate.config, candidate.bits, request.group);
    if (of_bits.least_bytes == 0 || candidate.bytes < of_bits.least_bytes)
        of_bits.least_bytes = candidate.bytes;
    if (request.memory && candidate.bytes > *request.memory) return;
    if (!predict_loss(request, candidate)) return;
    if (!of_bits.best || candidate.loss < of_bits.best->loss) of_bits.best = std::move(candidate);
}

[[noreturn]] void fail_without_candidate(const ChoiceRequest& request, const Choice& choice,
                                         const std::string& models) {
    const auto smallest = std::min_element(
        choice.of_bits.begin(), choice.of_bits.end(),
        [](const Choice::OfBits& a, const Choice::OfBits& b) { return a.least_bytes < b.least_bytes; });
    if (request.memory && smallest->least_bytes > *request.memory)
        fail("-memory " + std::to_string(*request.memory) + ": too small: " + models + " takes at least " +
             format_exact(smallest->least_bytes) + " bytes (at " + format_bits(smallest->bits) + " bits)");
    fail("-qat_frac: " + request.law->path + " predicts no loss " +
         (request.qat_fraction
              ? "at this fraction, which leaves no tokens of one kind; give another"
              : "for so few tokens per parameter byte; give -qat_frac, or train on more tokens"));
}

void take_best(const ChoiceRequest& request, Choice& choice, const std::string& models) {
    const Candidate* best = nullptr;
    for (const Choice::OfBits& of_bits : choice.of_bits)
        if (of_bits.best && (best == nullptr || of_bits.best->loss < best->loss)) best = &*of_bits.best;
    if (best == nullptr) fail_without_candidate(request, choice, models);
    choice.chosen = *best;
}

// 2^(k/8) parameters in three digits: "1.23M".
std::string size_text(int k) {
    constexpr std::array<std::pair<double, const char*>, 4> units = {
        {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}}};
    const double size = std::exp2(static_cast<double>(k) / sizes_per_doubling);
    for (const auto& [unit, suffix] : units)
        if (size >= unit)
            return formatted(size < 10 * unit    ? "%.2f"
                             : size < 100 * unit ? "%.1f"
                                                 : "%.0f",
                             size / unit) +
                   suffix;
    return formatted("%.0f", size);
}

bool same_shape(const ModelConfig& a, const ModelConfig& b) {
    return a.layers == b.layers && a.width == b.width && a.heads == b.heads && a.kv_heads == b.kv_heads &&
           a.ffn == b.ffn;
}

// Sizes from the smallest, with the steps that a budget pays for.
class SizeSearch {
  public:
    SizeSearch(const ChoiceRequest& request, double flops, int64_t vocabulary, int64_t sequence_length,
               const ConfigOverrides& shape)
        : request_(request),
          flops_(flops),
          vocabulary_(vocabulary),
          sequence_length_(sequence_length),
          shape_(shape) {}

    // Of the bits and the fraction nothing yet.
    std::vector<Candidate> sizes(double fewest_bits) {
        std::vector<Candidate> found;
        const double farthest = farthest_size * request_.law->fitted.parameters.high;
        for (int k = smallest();; ++k) {
            const std::string size = size_text(k);
            const ModelConfig config = resolve_config(size, vocabulary_, sequence_length_, shape_);
            const auto parameters = static_cast<double>(parameter_count(config));
            if (k == first_ && parameters > farthest) fail_too_far(parameters);
            reached_farthest_ =
                parameters > farthest || static_cast<double>(config.requested_parameters) > farthest;
            // No shape takes fewer bits a weight.
            const bool too_large =
                request_.memory && parameters * fewest_bits / 8 > static_cast<double>(*request_.memory);
            if (reached_farthest_ || (too_large && !found.empty())) break;
            const double steps = steps_of(config);
            if (steps < 1) break;
            constexpr double most_tokens = 4e18;  // that can be counted
            if (steps * static_cast<double>(request_.tokens_per_step) > most_tokens) continue;
            if (!fits_group(config, request_.group) ||
                (!found.empty() && same_shape(found.back().config, config)))
                continue;
            found.push_back({size, config, 0, static_cast<int64_t>(steps), 0, 0, 0});
        }
        return found;
    }

    // Whether larger sizes were left out only for being far from what was fitted.
    bool reached_farthest() const { return reached_farthest_; }

  private:
    // The first k whose size is large enough for the vocabulary.
    int smallest() {
        constexpr int smallest_width = 32, doublings = 10;
        const auto embedding = static_cast<double>(vocabulary_ * smallest_width);
        first_ = static_cast<int>(sizes_per_doubling * std::log2(embedding));
        const int last = first_ + doublings * sizes_per_doubling;
        // What is wrong at `last` is no matter of the size: whoever resolves that one hears of it.
        while (first_ < last && !can_resolve(size_text(first_))) ++first_;
        return first_;
    }

    bool can_resolve(const std::string& size) const {
        try {
            resolve_config(size, vocabulary_, sequence_length_, shape_);
            return true;
        } catch (const std::runtime_error&) {
            return false;
        }
    }

    double steps_of(const ModelConfig& config) const {
        return std::round(flops_ /
                          (training_flops_per_token(config) * static_cast<double>(request_.tokens_per_step)));
    }

    [[noreturn]] void fail_too_far(double parameters) const {
        fail("-n auto: the smallest model of vocabulary " + std::to_string(vocabulary_) + " has " +
             format_count(std::llround(parameters)) + " parameters, more than " +
             formatted("%.0f", farthest_size) + " times the largest that " + request_.law->path +
             " was fitted on; give -n, or fit the law on larger ones");
    }

    const ChoiceRequest& request_;
    const double flops_;
    const int64_t vocabulary_, sequence_length_;
    const ConfigOverrides& shape_;
    int first_ = 0;
    bool reached_farthest_ = false;
};

// "3.1234 [3.1201, 3.1302]"
std::string loss_text(const ChoiceRequest& request, const Candidate& run) {
    const auto parameters = static_cast<double>(parameter_count(run.config));
    const double tokens = static_cast<double>(run.steps) * static_cast<double>(request.tokens_per_step);
    const Prediction loss = run.bits == 16 ? request.law->full_precision_loss(parameters, tokens).value()
                                           : request.law->loss(parameters, tokens, run.bits, run.fraction);
    return formatted("%.4f [%.4f, %.4f]", loss.value, loss.low, loss.high);
}

std::string row_of(const ChoiceRequest& request, const Candidate& run, bool chosen) {
    const int64_t tokens = run.steps * request.tokens_per_step, parameters = parameter_count(run.config);
    const double s =
        tokens_per_parameter_byte(static_cast<double>(tokens), static_cast<double>(parameters), run.bits);
    std::string beyond;
    for (const std::string& what :
         extrapolations(request.law->fitted, static_cast<double>(parameters), static_cast<double>(tokens),
                        run.bits, run.bits < 16 ? std::optional(run.fraction) : std::nullopt))
        beyond += (beyond.empty() ? "" : ", ") + what.substr(0, what.find(' '));
    std::string row =
        formatted("  %-5s %10s %10s %9.4g %8.4f  %-25s %10s  %-6s  %s", format_bits(run.bits).c_str(),
                  format_count(parameters).c_str(), format_count(tokens).c_str(), s, run.fraction,
                  loss_text(request, run).c_str(), format_bytes(run.bytes).c_str(), chosen ? "chosen" : "",
                  beyond.c_str());
    row.erase(row.find_last_not_of(' ') + 1);
    return row + "\n";
}

}  // namespace

Choice choose_bits(const ChoiceRequest& request, const ModelConfig& config, int64_t steps) {
    Choice choice;
    for (const double bits : candidate_bits(request)) {
        choice.of_bits.push_back({bits, std::nullopt, 0});
        consider(request, {"", config, bits, steps, 0, 0, 0}, choice.of_bits.back());
    }
    take_best(request, choice, "the model");
    return choice;
}

Choice choose_size(const ChoiceRequest& request, double flops, int64_t vocabulary, int64_t sequence_length,
                   const ConfigOverrides& shape) {
    const std::vector<double> all_bits = candidate_bits(request);
    SizeSearch search(request, flops, vocabulary, sequence_length, shape);
    const std::vector<Candidate> sizes = search.sizes(all_bits.front());
    if (sizes.empty())
        fail(formatted("-flops %.6g: ", flops) +
             "not enough for a step of the smallest model, or too much to count the tokens of any; give "
             "another budget" +
             (request.group > 0 ? ", or another -group" : ""));
    Choice choice;
    for (const double bits : all_bits) {
        choice.of_bits.push_back({bits, std::nullopt, 0});
        for (const Candidate& size : sizes) consider(request, size, choice.of_bits.back());
    }
    take_best(request, choice, "the smallest model of vocabulary " + std::to_string(vocabulary));
    if (search.reached_farthest() && choice.chosen.size == sizes.back().size)
        choice.notes.push_back(
            formatted("larger models were not looked at: they have more than %.0f times the parameters "
                      "of the largest that the law was fitted on",
                      farthest_size));
    return choice;
}

std::string format_choice(const Choice& choice, const ChoiceRequest& request) {
    std::string text = "choice: the least loss that " + request.law->path + " predicts" +
                       (request.memory ? " for at most " + format_bytes(*request.memory)
                                       : std::string(", whatever the size")) +
                       "\n";
    text += formatted("  %-5s %10s %10s %9s %8s  %-25s %10s\n", "bits", "parameters", "tokens", "S",
                      request.qat_fraction ? "f" : "f*", "loss [90% interval]", "size");
    for (const Choice::OfBits& of_bits : choice.of_bits) {
        if (of_bits.best) {
            text += row_of(request, *of_bits.best, of_bits.bits == choice.chosen.bits);
            continue;
        }
        const bool too_large = request.memory && of_bits.least_bytes > *request.memory;
        text +=
            formatted("  %-5s ", format_bits(of_bits.bits).c_str()) +
            (too_large ? "does not fit: at least " + format_bytes(of_bits.least_bytes) : "no prediction") +
            "\n";
    }
    text += "  after a row: what of N, D, S, B and the fraction the law was not fitted on\n";
    for (const std::string& note : choice.notes) text += "  note: " + note + "\n";
    return text;
}

}  // namespace train_qat
