// The model: a Llama-2-like decoder, forward and backward over one micro-batch. What a layer computes is
// written once, as a list of backend operations; model/parameters.h holds the weights, kernels/operations.h
// explains the operations.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/arena.h"
#include "model/config.h"
#include "model/data_parallel.h"
#include "model/parameters.h"
#include "model/quantizer.h"

namespace train_qat {

// What the backward pass needs of one layer, and the layer's place in the residual stream.
struct LayerActivations {
    Tensor residual_attention;  // (M, C) float32, the stream before attention
    Tensor attention_norm;      // (M, C)
    Tensor attention_rstd;      // (M) float32
    Tensor qkv_before_norms;    // (M, (H + 2G) D) with config.head_norms, else empty
    Tensor head_rstd;           // (M, H + G) float32, likewise
    Tensor qkv;                 // (M, (H + 2G) D), rotated
    Tensor attention;           // (M, H D)
    Tensor attention_rest;      // (M, H D) what rounding took from it, or empty
    Tensor log_sum_exp;         // (B, H, T) float32
    Tensor residual_ffn;        // (M, C) float32, the stream before the feed-forward block
    Tensor ffn_norm;            // (M, C)
    Tensor ffn_rstd;            // (M) float32
    Tensor gate_up;             // (M, 2F)
    Tensor hidden;              // (M, F)
};

// How the output head works. Its logits exist a chunk of rows at a time. In bfloat16 they are rounded once before the
// loss reads them, also that of `evaluate` and what `logits` returns, and take a third of the memory: their gradient
// takes their place.
struct LogitOptions {
    int64_t rows = 0;             // at a time; 0: as many as suit the device (Backend::preferred_logit_rows)
    DType type = DType::float32;  // or the compute type
};

// Rows of logits that exist at a time in micro-batches of `batch` sequences: those asked for, at most all of them.
int64_t logit_chunk_rows(const Backend& backend, const ModelConfig& config, int64_t batch,
                         const LogitOptions& asked);

// Fills tables of rotations, both (T, D/2) float32 on the device.
void fill_rotations(Backend& backend, const ModelConfig& config, const Tensor& cosines, const Tensor& sines);

class Transformer {
  public:
    // Lays out all memory for micro-batches of up to `batch` sequences, allocates nothing. shard: of the optimizer's
    // state, where ranks divide it. For inference all layers share their activations, and nothing trains.
    Transformer(Backend& backend, const ModelConfig& config, const QuantizationConfig& quantization,
                DType compute_type, int64_t batch, const StateShard& shard = {},
                const LogitOptions& logit_options = {}, ModelUse use = ModelUse::training);
    Transformer(const Transformer&) = delete;
    Transformer& operator=(const Transformer&) = delete;

    int64_t memory_bytes() const;
    std::string memory_table() const;  // for people: a line per purpose, and the sum

    // Takes the memory. std::runtime_error with needed and available bytes when it does not suffice.
    void allocate();

    // Forward and backward pass of one micro-batch of `batch` sequences: adds to the gradients (number 0 of
    // the step's micro-batches here overwrites them) and to the loss. Gradients are those of the mean over
    // all tokens of the step, of which this is one of `micro_batches`, those of other ranks included. inputs,
    // targets: (batch, T) token ids in host memory, each in [0, V). ranks: given with the last micro-batch of
    // a step; told of each layer's finished gradients.
    void train_micro_batch(const int32_t* inputs, const int32_t* targets, int64_t micro_batch,
                           int64_t micro_batches, DataParallel* ranks = nullptr);
    // Mean loss over this rank's micro-batches since the last that was the first of its step. Waits.
    double loss();

    // Mean loss of `sequences` <= batch sequences, with the weights as they are quantized now. Waits.
    double evaluate(const int32_t* inputs, const int32_t* targets, int64_t sequences);
    // The same, position by position, of sequences of 1 <= positions <= T tokens. inputs, targets, losses: (sequences,
    // positions) in host memory.
    void token_losses(const int32_t* inputs, const int32_t* targets, int64_t sequences, int64_t positions,
                      float* losses);

    // Logits behind positions [first, positions) of one sequence; 0 <= first < positions <= T. tokens:
    // (positions), logits: (positions - first, V), both in host memory. Waits.
    void logits(const int32_t* tokens, int64_t first, int64_t positions, float* logits);

    Backend& backend() const { return backend_; }
    const ModelConfig& config() const { return config_; }
    Parameters& parameters() { return parameters_; }
    int64_t batch() const { return batch_; }
    DType compute_type() const { return compute_type_; }

  private:
    void place_layer(LayerActivations& layer);
    void place_activations();
    void place_gradients();
    // The advice in the error of a model that needs more than `bytes`.
    std::string what_would_fit(int64_t bytes) const;
    void set_sequences(int64_t sequences, int64_t positions);
    void upload_tokens(const int32_t* inputs, const int32_t* targets);

    void forward();
    void forward_attention(const LayerWeights& weights, LayerActivations& layer);
    void forward_queries_keys_values(const LayerWeights& weights, LayerActivations& layer);
    void forward_ffn(const LayerWeights& weights, LayerActivations& layer);
    void forward_losses();
    void forward_and_backward_head(float gradient_factor, bool accumulate);
    // Logits of rows [first, first + count) of final_norm_ to the host.
    void read_logits(int64_t first, int64_t count, float* logits);
    void backward(bool accumulate, DataParallel* ranks);
    void backward_ffn(LayerWeights& weights, LayerActivations& layer, bool accumulate);
    void backward_attention(LayerWeights& weights, LayerActivations& layer, const Tensor& next_scale,
                            bool accumulate);
    void backward_queries_keys_values(LayerWeights& weights, const LayerActivations& layer, bool accumulate);

    // The first M rows of a (batch * T, ...) buffer; of an empty one nothing.
    Tensor active(const Tensor& buffer) const {
        return buffer.empty() ? buffer : buffer.rows(0, shape_.rows());
    }

    Backend& backend_;
    const ModelConfig config_;
    const QuantizationConfig quantization_;
    const DType compute_type_;
    const int64_t batch_;
    const LogitOptions logit_options_;
    const ModelUse use_;
    const int64_t chunk_rows_;  // rows of logits that exist at a time
    Arena parameter_arena_, activation_arena_;
    Parameters parameters_;

    AttentionShape shape_;  // of the present micro-batch
    std::vector<LayerActivations> layers_;
    Tensor cosines_, sines_;            // (T, D/2) float32
    Tensor tokens_, targets_, losses_;  // (M)
    Tensor loss_total_;                 // (1) float32, sum of losses over the step's micro-batches
    Tensor branch_;                     // (M, C) what attention or feed-forward adds to the stream
    Tensor final_residual_, final_norm_, final_rstd_;
    Tensor logits_;      // (chunk, V)
    Tensor d_logits_;    // (chunk, V); nowhere if the logits' own place can hold them
    Tensor d_residual_;  // (M, C) float32
    Tensor dz_;          // (M, C) d_residual times the next linear layer's scales
    Tensor d_norm_;      // (M, C)
    Tensor d_hidden_, d_attention_, d_qkv_;
    void* workspace_ = nullptr;
    int64_t loss_terms_ = 0;  // tokens that loss_total_ sums
};

}  // namespace train_qat
