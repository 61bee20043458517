// All weights of a model in the form that generation reads: packed codes and scales, or plain numbers where there is no
// grid. They are copies: the model that they come from may change or go.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "model/arena.h"
#include "model/config.h"
#include "model/parameters.h"

namespace train_qat {

struct PackedLayer {
    Tensor attention_norm, ffn_norm;                    // (C)
    PackedMatrix qkv, attention_output, gate_up, down;  // as in LayerWeights
    Tensor qkv_bias;                                    // ((H + 2G) D), with config.attention_biases
    Tensor query_norm, key_norm;                        // (D), with config.head_norms
};

class PackedWeights {
  public:
    // Of `parameters` as they are quantized now. std::runtime_error without enough memory.
    PackedWeights(Backend& backend, const ModelConfig& config, const Parameters& parameters);
    PackedWeights(const PackedWeights&) = delete;
    PackedWeights& operator=(const PackedWeights&) = delete;

    const PackedMatrix& embedding() const { return embedding_; }
    const PackedMatrix& output_head() const { return tied_ ? embedding_ : untied_head_; }
    const std::vector<PackedLayer>& layers() const { return layers_; }
    const Tensor& final_norm() const { return final_norm_; }

    // What one token reads: all matrices, of an embedding that is not the output head next to nothing.
    int64_t bytes_per_token() const;

  private:
    Arena arena_;
    const bool tied_;
    PackedMatrix embedding_, untied_head_;
    Tensor final_norm_;  // (C)
    std::vector<PackedLayer> layers_;
};

}  // namespace train_qat
