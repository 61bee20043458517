// A run for tests of what it records: its options, plan, settings and state, without training.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"
#include "model/run/options.h"
#include "model/run/run_plan.h"
#include "model/run/settings.h"
#include "model/run/state.h"

namespace train_qat::test {

inline Options some_options() {
    Options options;
    options.bits = 1.58;
    options.batch = 3;
    options.gradient_accumulation = 5;
    options.group = 32;
    options.seed = UINT64_MAX - 1;
    options.optimizer.epsilon = 1.0 / 3.0;
    return options;
}

inline ModelConfig some_config() {
    ConfigOverrides shape;
    shape.layers = 2, shape.width = 32, shape.heads = 2, shape.ffn = 64;
    return resolve_config("", 61, 16, shape);
}

inline Plan some_plan(double bits = 1.58, double fraction = 0.4) {
    PlanRequest request;
    request.parameters = parameter_count(some_config());
    request.bits = bits;
    request.qat_fraction = fraction;
    request.steps = 30;
    request.tokens_per_step = 240;
    request.learning_rate = 1e-3 / 3.0;
    return make_plan(request);
}

// On a CPU.
inline RunSettings settings_of(const RunPlan& run, const Options& options = some_options(),
                               DType compute_type = DType::bfloat16) {
    return run_settings(options, run, *make_cpu_backend(1), compute_type);
}

inline RunSettings some_settings() {
    return settings_of({{1, 1, 3, 5}, some_config(), some_plan()});
}

// What run.json and checkpoints keep of them.
inline nlohmann::ordered_json recorded(const RunSettings& settings) {
    return with_roles(settings, recorded_roles);
}

inline RunState some_state() {
    RunState state;
    state.quantized = true;
    state.optimizer_steps = 20;
    state.scale_steps = 2;
    state.loader_position = (int64_t{1} << 60) + 1;
    state.results.full_precision = 10.0 / 3.0;
    state.results.rounded = 1e-17;
    return state;
}

}  // namespace train_qat::test
