#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace train_qat {

Optimizer::Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config,
                     Communicator& communicator)
    : backend_(backend),
      parameters_(parameters),
      config_(config),
      data_parallel_(backend, parameters, communicator) {
    const auto count = static_cast<int64_t>(parameters.all().size());
    squares_memory_ =
        DeviceMemory(backend, communicator.size() * count * static_cast<int64_t>(sizeof(float)));
    squares_ = Tensor(squares_memory_.data(), DType::float32, {communicator.size(), count});
}

Optimizer::Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config)
    : Optimizer(backend, parameters, config, make_single_communicator()) {}

Optimizer::Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config,
                     std::unique_ptr<Communicator> alone)
    : Optimizer(backend, parameters, config, *alone) {
    alone_ = std::move(alone);
}

double Optimizer::finish_gradients() {
    Communicator& communicator = data_parallel_.communicator();
    const int64_t count = squares_.shape[1];
    const std::vector<ParameterRows> own = data_parallel_.own_rows();
    backend_.ste_backward_and_norm({.parameters = own,
                                    .squares = Tensor(squares_.rows(communicator.rank(), 1).data,
                                                      DType::float32, {static_cast<int64_t>(own.size())})});
    const RankRows rows{squares_.data, communicator.size(), count * static_cast<int64_t>(sizeof(float))};
    communicator.all_gather({&rows, 1});
    communicator.wait();
    std::vector<float> squares(static_cast<size_t>(squares_.elements()));
    backend_.copy_to_host(squares.data(), squares_.data, squares_.bytes());
    communicator.wait();  // throws when other ranks were lost meanwhile, and the sums are none

    offender_.clear();
    double total = 0;
    for (int rank = 0; rank < communicator.size(); ++rank) {
        const std::vector<size_t> owned = data_parallel_.owned_parameters(rank);
        for (size_t i = 0; i < owned.size(); ++i) {
            const float sum = squares[static_cast<size_t>(rank * count) + i];
            total += sum;
            if (offender_.empty() && !std::isfinite(sum)) offender_ = parameters_.all()[owned[i]].name;
        }
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
    data_parallel_.gather_gradients();
    backend_.adamw_and_quantize({.parameters = parameters_.rows(),
                                 .step = update,
                                 .squares = Tensor(squares_.data, DType::float32, {squares_.elements()})});
    data_parallel_.gather_weights();
}

void Optimizer::quantize() {
    parameters_.quantize(backend_);
    data_parallel_.gather_weights();
}

void Optimizer::begin_quantization() {
    parameters_.use_quantization(true);
    parameters_.initialize_scales(backend_);
    quantize();
    scale_steps_ = 0;
}

void Optimizer::restore_steps(int64_t steps, int64_t scale_steps) {
    steps_ = steps;
    scale_steps_ = scale_steps;
}

}  // namespace train_qat
