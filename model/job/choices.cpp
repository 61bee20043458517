#include "model/job/choices.h"

#include <memory>
#include <stdexcept>

#include "model/job/data_set.h"
#include "model/job/law_file.h"
#include "model/job/layout.h"
#include "model/job/run_plan.h"
#include "model/plan/choice.h"
#include "model/plan/model_bytes.h"
#include "model/units.h"

namespace train_qat {
namespace {

void check_memory(const Options& options, const ModelConfig& config) {
    // Groups that do not fit are an error of their own, with a better message.
    if (!options.memory || !fits_group(config, options.group)) return;
    const int64_t bytes = packed_model_bytes(config, options.bits, options.group);
    if (bytes > *options.memory)
        throw std::runtime_error(
            "-memory " + std::to_string(*options.memory) + ": the model of " +
            format_count(parameter_count(config)) + " parameters takes " + format_exact(bytes) +
            " bytes at " + format_bits(options.bits) +
            " bits; give fewer bits (-b auto -law chooses), a smaller -n or more -memory");
}

ChoiceRequest choice_request(const Options& options, int ranks) {
    ChoiceRequest request;
    request.law = options.plan.law;
    if (!options.choose_bits) request.bits = options.bits;
    request.memory = options.memory;
    request.qat_fraction = options.plan.qat_fraction;
    request.group = options.group;
    request.tokens_per_step = run_layout(options, ranks).step_sequences() * options.sequence_length;
    return request;
}

Choice choose(const Options& options, const ChoiceRequest& request) {
    if (options.choose_size)
        return choose_size(request, *options.flops, vocabulary_of(options), options.sequence_length,
                           options.shape);
    const ModelConfig config = model_config(options);
    if (!fits_group(config, options.group))
        throw std::runtime_error(
            "-group " + std::to_string(options.group) +
            ": does not divide the rows of all matrices; give another one (0: a scale for each row), or "
            "-width and -ffn that are multiples of it");
    PlanRequest plan = options.plan;
    plan.parameters = parameter_count(config);
    plan.tokens_per_step = request.tokens_per_step;
    return choose_bits(request, config, planned_steps(plan));
}

}  // namespace

Options with_law(const Options& options) {
    Options completed = options;
    if (!options.law_file.empty())
        completed.plan.law = std::make_shared<const ScalingLaw>(read_scaling_law(options.law_file));
    return completed;
}

ResolvedOptions resolve_choices(const Options& options, int ranks) {
    ResolvedOptions resolved{options, ""};
    if (!options.choose_size && !options.choose_bits) {
        if (options.memory) check_memory(options, model_config(options));
        return resolved;
    }
    const ChoiceRequest request = choice_request(options, ranks);
    const Choice choice = choose(options, request);
    Options& own = resolved.options;
    own.bits = own.plan.bits = choice.chosen.bits;
    if (options.choose_size) {
        own.size = choice.chosen.size;
        own.plan.steps = choice.chosen.steps;
    }
    own.choose_size = own.choose_bits = false;
    resolved.report = format_choice(choice, request);
    return resolved;
}

}  // namespace train_qat
