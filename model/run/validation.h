// The loss on the validation shards.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "data/loader.h"
#include "data/mix_bits.h"
#include "kernels/ranks/communicator.h"
#include "model/job/options.h"
#include "model/transformer.h"

namespace train_qat {

class Validation {
  public:
    // Of the shards of -j, which must be given: std::runtime_error as DataLoader's.
    Validation(const Options& options, const ModelConfig& config);

    // Collective: the mean loss over the first -val_sequences sequences, each rank taking its part of them,
    // with the weights as they are quantized now.
    double loss(Transformer& model, Communicator& communicator);
    // The same; nothing, on all ranks, when one of them is asked to stop meanwhile (model/job/stop_signal.h).
    std::optional<double> loss_unless_stopped(Transformer& model, Communicator& communicator);

    int64_t tokens() const { return sequences_ * sequence_length_; }  // of a validation, over all ranks
    // Of what is measured: the shards and how many of their sequences.
    uint64_t fingerprint() const { return mix_bits(data_.fingerprint() ^ static_cast<uint64_t>(sequences_)); }

  private:
    std::optional<double> measure(Transformer& model, Communicator& communicator, bool may_stop);

    DataLoader data_;
    const int64_t sequences_, sequence_length_;
    std::vector<int32_t> inputs_, targets_;  // (batch, T)
};

}  // namespace train_qat
