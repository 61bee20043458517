// A model that reads token after token: packed weights, and the keys and values of all positions read so far. Activations
// are float32, whatever type the model was trained in.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "model/arena.h"
#include "model/config.h"
#include "model/generation/packed_weights.h"
#include "model/transformer.h"

namespace train_qat {

class Decoder {
  public:
    // Of the model's weights as they are quantized now; the model itself is not used any further. std::runtime_error
    // without enough memory.
    explicit Decoder(Transformer& model);
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // Reads further tokens, ids in [0, V), and gives the logits behind the last of them: (V) in host memory. Many are read
    // faster than one by one; the result is the same up to rounding. std::logic_error: none, or more than there is room for.
    void read(std::span<const int32_t> tokens, std::span<float> logits);

    int64_t position() const { return position_; }  // tokens read
    int64_t capacity() const { return config_.sequence_length; }
    void forget() { position_ = 0; }

    const ModelConfig& config() const { return config_; }
    Backend& backend() const { return backend_; }

    // What a token at `position` reads of memory.
    int64_t weight_bytes() const { return weights_.bytes_per_token(); }
    int64_t cache_bytes(int64_t position) const;

  private:
    // Keys and values of a layer: the forms are CachedAttentionForward's.
    struct Cache {
        Tensor keys, values;
    };
    void place_activations();
    // At most most_rows tokens.
    void read_piece(std::span<const int32_t> tokens);
    void layer(const PackedLayer& weights, const Cache& cache, bool first);
    void attention(const PackedLayer& weights, const Cache& cache);
    void norm(const Tensor& y, const Tensor& weight, bool first);

    Tensor active(const Tensor& buffer) const { return buffer.rows(0, shape_.sequence); }

    Backend& backend_;
    const ModelConfig config_;
    const PackedWeights weights_;
    int64_t position_ = 0;
    AttentionShape shape_;  // of the present piece
    Arena arena_;
    std::vector<Cache> caches_;
    Tensor cosines_, sines_;   // (T, D/2)
    Tensor tokens_;            // (M) int32
    Tensor residual_;          // (M, C) the stream
    Tensor normed_;            // (M, C)
    Tensor rstd_;              // (M)
    Tensor branch_;            // (M, C) what attention or feed-forward adds to the stream
    Tensor qkv_;               // (M, (H + 2G) D)
    Tensor normed_qkv_;        // the same, with config.head_norms
    Tensor head_rstd_;         // (M, H + G), with config.head_norms
    Tensor attention_;         // (M, H D)
    Tensor gate_up_, hidden_;  // (M, 2F), (M, F)
    Tensor logits_;            // (1, V)
};

}  // namespace train_qat
