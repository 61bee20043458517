// The optimizer step: straight-through backward pass and norm, then AdamW and new levels. Everything that
// quantization-aware training adds to a step happens here, once, however many micro-batches came before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "kernels/ranks/communicator.h"
#include "model/data_parallel.h"
#include "model/parameters.h"

namespace train_qat {

struct OptimizerConfig {
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;                // matrices only: norms and scales have none
    double clip_norm = 1.0;                   // 0: no clipping
    double scale_learning_rate_factor = 1.0;  // relative step of the scales / learning rate, see AdamWStep
};

class Optimizer {
  public:
    // On all ranks of `communicator`, each with its own backend and parameters (see DataParallel).
    Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config,
              Communicator& communicator);
    // On one rank.
    Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config);

    // Where the backward pass reports finished gradients.
    DataParallel& data_parallel() { return data_parallel_; }

    // Turns the accumulated gradients - of all ranks - into those of the master weights and scales, and
    // returns their global norm (before clipping). If it is not finite, `offender()` names the first tensor
    // whose gradient is not.
    double finish_gradients();
    const std::string& offender() const { return offender_; }

    // Updates all weights and scales. After finish_gradients().
    void step(double learning_rate);

    // Makes the matmuls' copies on all ranks agree with masters and scales: after these were set or loaded.
    void quantize();

    // From here on the weights are quantized: first scales from the present weights, scale moments zero. The
    // weights' moments carry on.
    void begin_quantization();

    // Steps done, for the bias corrections; part of a checkpoint.
    int64_t steps() const { return steps_; }
    int64_t scale_steps() const { return scale_steps_; }
    void restore_steps(int64_t steps, int64_t scale_steps);

    const OptimizerConfig& config() const { return config_; }

  private:
    Optimizer(Backend& backend, Parameters& parameters, const OptimizerConfig& config,
              std::unique_ptr<Communicator> alone);

    Backend& backend_;
    Parameters& parameters_;
    const OptimizerConfig config_;
    std::unique_ptr<Communicator> alone_;  // where no communicator was given
    DataParallel data_parallel_;
    DeviceMemory squares_memory_;
    Tensor squares_;  // (ranks, parameters) float32: a rank's sums of squares, in the order of its own rows
    std::string offender_;
    int64_t steps_ = 0;
    int64_t scale_steps_ = 0;
};

}  // namespace train_qat
