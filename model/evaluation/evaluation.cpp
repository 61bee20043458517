#include "model/evaluation/evaluation.h"

#include <cmath>
#include <numbers>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "model/evaluation/hellaswag.h"
#include "model/evaluation/trained_model.h"
#include "model/job/data_set.h"
#include "model/run/validation.h"
#include "model/units.h"

namespace train_qat {

namespace {

// Bytes of text for each token that a validation predicts: the tokens behind the first of each sequence.
std::optional<double> bytes_of_token(const Options& options, const ModelConfig& config, int64_t tokens) {
    if (options.data.tokenizer.empty()) return std::nullopt;
    const Tokenizer tokenizer(options.data.tokenizer);
    DataLoader data(options.data.validation, validation_loader(options, config));
    std::vector<int32_t> inputs(static_cast<size_t>(config.sequence_length)), targets(inputs.size());
    int64_t bytes = 0;
    for (int64_t left = tokens; left > 0; left -= config.sequence_length) {
        data.next_batch(1, inputs.data(), targets.data());
        for (const int32_t id : targets) bytes += tokenizer.bytes_of(id);
    }
    if (bytes == 0)
        throw std::runtime_error("-tokenizer " + options.data.tokenizer +
                                 ": the shards' tokens stand for no text");
    return static_cast<double>(bytes) / static_cast<double>(tokens);
}

std::string row(const std::string& weights, double loss, const std::optional<double>& bytes) {
    std::string text = formatted("  %-34s %10.6f %12.3f", weights.c_str(), loss, std::exp(loss));
    if (bytes) text += formatted(" %14.4f", loss / std::numbers::ln2 / *bytes);
    return text + "\n";
}

void evaluate_losses(const Options& options, TrainedModel& trained, Backend& backend,
                     Communicator& communicator, std::ostream& console) {
    Transformer& model = *trained.model;
    Validation validation(options, model.config());
    const std::optional<double> bytes = bytes_of_token(options, model.config(), validation.tokens());
    console << "data  " << format_exact(validation.tokens()) << " tokens of " << options.data.validation
            << (bytes ? formatted(", %.3f bytes each", *bytes) : std::string()) << "\n\n"
            << formatted("  %-34s %10s %12s", "weights", "loss", "perplexity")
            << (bytes ? formatted(" %14s", "bits per byte") : std::string()) << "\n";
    for_each_precision(trained, backend, [&](const std::string& weights) {
        console << row(weights, validation.loss(model, communicator), bytes) << std::flush;
    });
}

}  // namespace

void evaluate(const Options& options, Backend& backend, Communicator& communicator, std::ostream& console) {
    if (options.data.validation.empty() && options.hellaswag.empty())
        throw std::runtime_error(
            "-eval_only: name the shards to measure with -j, or examples with -hellaswag");
    TrainedModel trained = open_trained_model(options, backend, communicator, console);
    console << "model " << trained.path << ": " << format_count(parameter_count(trained.model->config()))
            << " parameters\n";
    if (!options.data.validation.empty()) evaluate_losses(options, trained, backend, communicator, console);
    if (!options.hellaswag.empty()) evaluate_hellaswag(options, trained, backend, communicator, console);
}

}  // namespace train_qat
