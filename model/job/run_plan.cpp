#include "model/job/run_plan.h"

#include "model/import/hugging_face_config.h"
#include "model/job/data_set.h"

namespace train_qat {

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
    PlanRequest request = options.plan;
    request.parameters = parameter_count(config);
    request.tokens_per_step = layout.step_sequences() * config.sequence_length;
    return {layout, config, make_plan(request)};
}

void add_predictions(const Options& options, RunPlan& run) {
    if (options.plan.law) run.plan.predictions = predict(options.plan.law, run.plan, run.config.vocabulary);
}

std::string describe(const RunPlan& plan) {
    return describe(plan.config) + "\n" + format_plan(plan.plan, plan.config) + describe(plan.layout);
}

}  // namespace train_qat
