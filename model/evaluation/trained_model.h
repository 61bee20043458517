// The model of a checkpoint, to be used and not trained further. Sizes and bits are the checkpoint's own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "kernels/backend.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"
#include "model/transformer.h"

namespace train_qat {

struct TrainedModel {
    std::string path;        // of the checkpoint
    double bits = 16;        // of the run's quantization-aware steps; 16: it has none
    bool quantized = false;  // the checkpoint is of such a step
    std::unique_ptr<Transformer> model;
};

// Collective. The checkpoint of options.checkpoint (-e), or the latest of the run with that output directory, with weights
// as its last step left them. Of the other options: batch, dtype, -logits. Or the model of that Hugging Face folder, for
// sequences of -seq_len, rounded to the bits and groups of -b if it was given. std::runtime_error as
// CheckpointReader's or the folder's, or that starts with -e.
TrainedModel open_trained_model(const Options& options, Backend& backend, Communicator& communicator,
                                std::ostream& console);

// Calls `measure` with the weights in full precision, then quantized, of a full-precision checkpoint rounded, where the run
// has bits for that. It gets what people call these weights: "full precision", "quantized, 4 bits", "rounded to 4 bits".
void for_each_precision(TrainedModel& trained, Backend& backend,
                        const std::function<void(const std::string& weights)>& measure);

}  // namespace train_qat
