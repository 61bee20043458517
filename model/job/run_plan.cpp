#include "model/job/run_plan.h"

#include <stdexcept>

#include "data/loader.h"
#include "model/import/hugging_face_config.h"
#include "model/job/data_set.h"
#include "model/units.h"

namespace train_qat {

namespace {

// Of weights, or of a micro-batch's activations, more than that no 64 bits count in bytes.
void check_countable(const ModelConfig& config, const RunLayout& layout) {
    constexpr double most = 1e15;
    const auto width = static_cast<double>(config.width), layers = static_cast<double>(config.layers);
    const auto heads = static_cast<double>(config.heads) * static_cast<double>(config.head_dim);
    const double of_layer = 4 * width + 4 * heads + 3 * static_cast<double>(config.ffn);
    const auto vocabulary = static_cast<double>(config.vocabulary);
    if (width * (vocabulary + layers * of_layer) > most)
        throw std::runtime_error(
            "-layers, -width, -heads, -ffn, -vocab: no memory holds such a model; give less of them");
    const double tokens = static_cast<double>(layout.batch) * static_cast<double>(config.sequence_length);
    if (tokens * (width + layers * of_layer) > most)
        throw std::runtime_error("-batch " + std::to_string(layout.batch) + ", -seq_len " +
                                 std::to_string(config.sequence_length) +
                                 ": no memory holds such a micro-batch; give less of them");
}

}  // namespace

ModelConfig model_config(const Options& options) {
    if (options.initial_model.empty())
        return resolve_config(options.size, vocabulary_of(options), options.sequence_length, options.shape);
    const ModelConfig config = read_hugging_face_config(options.initial_model, options.sequence_length);
    check_vocabulary(options, config);
    return config;
}

RunPlan plan_run(const Options& options, int ranks) {
    const RunLayout layout = run_layout(options, ranks);
    const ModelConfig config = model_config(options);
    check_countable(config, layout);
    PlanRequest request = options.plan;
    request.parameters = parameter_count(config);
    request.tokens_per_step = layout.step_sequences() * config.sequence_length;
    return {layout, config, make_plan(request)};
}

void add_predictions(const Options& options, RunPlan& run) {
    if (options.plan.law) run.plan.predictions = predict(options.plan.law, run.plan, run.config.vocabulary);
}

std::string describe_passes(const Options& options, const ModelConfig& config, const Plan& plan) {
    if (options.data.training.empty()) return "";
    // Up to 4 passes are nearly as good as new text, beyond about 16 nothing is gained (Muennighoff et al. 2023,
    // "Scaling Data-Constrained Language Models", arXiv 2305.16264).
    constexpr double most_useful = 4;
    const DataLoader loader(options.data.training, training_loader(options, config, 0, 1));
    const int64_t tokens = loader.samples_per_epoch() * config.sequence_length;
    const double passes = static_cast<double>(plan.tokens()) / static_cast<double>(tokens);
    std::string text = "data: " + format_exact(tokens) + " tokens in the training shards, read " +
                       formatted(passes < 10 ? "%.2f" : "%.0f", passes) + " times (passes)\n";
    if (passes > most_useful)
        text += "warning: the data are read " + formatted("%.3g", passes) +
                " times over, and beyond 4 passes more training gains little (arXiv 2305.16264); prepare "
                "more text, or "
                "train on fewer tokens\n";
    return text;
}

std::string describe(const RunPlan& plan) {
    return describe(plan.config) + "\n" + format_plan(plan.plan, plan.config) + describe(plan.layout);
}

}  // namespace train_qat
