#include "model/optimizer.h"

#include <algorithm>
#include <cmath>

namespace train_qat {

Optimizer::Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config)
    : backend_(backend),
      parameters_(parameters),
      config_(config),
      squares_memory_(backend, static_cast<int64_t>(parameters.all().size() * sizeof(float))),
      squares_(squares_memory_.data(), DType::float32, {static_cast<int64_t>(parameters.all().size())}) {}

double Optimizer::finish_gradients() {
    backend_.ste_backward_and_norm(parameters_.rows(), squares_);
    std::vector<float> squares(parameters_.all().size());
    backend_.copy_to_host(squares.data(), squares_.data, squares_.bytes());
    offender_.clear();
    double total = 0;
    for (size_t i = 0; i < squares.size(); ++i) {
        total += squares[i];
        if (offender_.empty() && !std::isfinite(squares[i])) offender_ = parameters_.all()[i].name;
    }
    return std::sqrt(total);
}

void Optimizer::step(double learning_rate) {
    AdamWStep update;
    update.learning_rate = static_cast<float>(learning_rate);
    update.scale_learning_rate = static_cast<float>(learning_rate * config_.scale_learning_rate_factor);
    update.beta1 = static_cast<float>(config_.beta1);
    update.beta2 = static_cast<float>(config_.beta2);
    update.epsilon = static_cast<float>(config_.epsilon);
    update.weight_decay = static_cast<float>(config_.weight_decay);
    update.clip_norm = static_cast<float>(config_.clip_norm);
    update.step = ++steps_;
    if (parameters_.quantized()) ++scale_steps_;
    update.scale_step = std::max<int64_t>(1, scale_steps_);
    backend_.adamw_and_quantize(parameters_.rows(), update, squares_);
}

void Optimizer::begin_quantization() {
    parameters_.use_quantization(true);
    parameters_.initialize_scales(backend_);
    parameters_.quantize(backend_);
    scale_steps_ = 0;
}

void Optimizer::restore_steps(int64_t steps, int64_t scale_steps) {
    steps_ = steps;
    scale_steps_ = scale_steps;
}

}  // namespace train_qat
