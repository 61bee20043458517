// All weights of the model: float32 masters with gradients and optimizer state, their quantization scales,
// and the copies that matmuls read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/arena.h"
#include "model/config.h"
#include "model/quantizer.h"

namespace train_qat {

// Which rows of masters, moments and scales a process keeps (ZeRO stage 1, arXiv 1910.02054): part `part` of
// `parts`, by first_row of kernels/ranks/communicator.h. Gradients and the matmuls' copies are always whole.
struct StateShard {
    int part = 0, parts = 1;
};

// What the memory is for: without training there are no gradients and nothing of the optimizer.
enum class ModelUse { training, inference };

// A tensor that the optimizer sees: a weight matrix of the model, or the vector of a norm or bias.
struct Parameter {
    std::string name;  // as Hugging Face names it: model.layers.0.self_attn.q_proj.weight
    bool is_vector = false;
    double bits = 16;    // in the quantization-aware range
    int64_t layer = -1;  // -1: of no layer: embedding, last norm, output head
    ParameterRows rows;  // what this process keeps; no rows where it keeps none
    // All rows: their gradient and place in the matmul's copy. Masters, moments and scales only where `rows`
    // is whole too; a vector's master always.
    ParameterRows whole;
};

// Sets `count` masters of `rows`, from their element `first` on, rounded where they are narrow. values: host memory, free
// again when this returns.
void set_masters(Backend& backend, const ParameterRows& rows, int64_t first, const float* values,
                 int64_t count);

// One matmul's weight: one parameter, or several that share their input and stand one below the other.
struct LinearWeight {
    Tensor gradient;  // (N, K) float32, with respect to the levels until ste_backward_and_norm
    ComputeWeight compute;
    Tensor row_scale_storage;  // (N) float32
};

// One parameter, or several that stand one behind the other (biases of queries, keys and values).
struct VectorWeight {
    Tensor master, gradient;  // (n) float32, n = C for the norms of the residual stream
};

struct LayerWeights {
    VectorWeight attention_norm;
    LinearWeight qkv;                   // [query | key | value] ((H + 2G) D, C)
    VectorWeight qkv_bias;              // ((H + 2G) D), with config.attention_biases
    VectorWeight query_norm, key_norm;  // (D), with config.head_norms
    LinearWeight attention_output;      // (C, H D)
    VectorWeight ffn_norm;
    LinearWeight gate_up;  // [gate | up] (2F, C)
    LinearWeight down;     // (C, F)
};

class Parameters {
  public:
    Parameters(const ModelConfig& config, const QuantizationConfig& quantization, DType compute_type,
               const Backend& backend, Arena& arena, const StateShard& shard = {},
               ModelUse use = ModelUse::training);
    Parameters(const Parameters&) = delete;
    Parameters& operator=(const Parameters&) = delete;

    // Sets the pointers of all ParameterRows; after the arena has memory.
    void bind();

    // Weights of a new model: normal with standard deviation 0.02, the projections into the residual stream
    // divided by sqrt(2 L) so that the stream's variance does not grow with depth (GPT-2), norms one, biases zero. The
    // value of each weight depends on `seed` and its place in the model only (kernels/normal_numbers.h), so a
    // process draws just the rows that it keeps. Quantizes them for the current phase.
    void initialize(Backend& backend, uint64_t seed);

    // Switches the grids of all parameters on or off. The caller quantizes afterwards.
    void use_quantization(bool on);
    bool quantized() const { return quantized_; }

    // Initial scales from the present weights, their moments (of training) zero. Needs use_quantization(true).
    void initialize_scales(Backend& backend);
    // Makes the kept rows of the matmuls' copies agree with masters and scales.
    void quantize(Backend& backend) const { backend.quantize({.parameters = rows_}); }

    // The kept rows of all parameters that have some here, in the order of all().
    const std::vector<ParameterRows>& rows() const { return rows_; }
    const std::vector<Parameter>& all() const { return parameters_; }
    const StateShard& shard() const { return shard_; }
    // With a shard: room for Backend::weight_messages of all matrices.
    void* message_buffer() const { return message_buffer_; }

    // (V, C): makes logits of the last norm's outputs.
    LinearWeight& output_head() { return config_.tied ? embedding : untied_head; }

    LinearWeight embedding;  // (V, C)
    std::vector<LayerWeights> layers;
    VectorWeight final_norm;
    LinearWeight untied_head;  // (V, C), without config.tied

  private:
    void place_linear(LinearWeight& weight, int64_t rows, int64_t columns, bool embedding,
                      const Backend& backend);
    void place_vector(VectorWeight& weight, int64_t count);
    void place_attention(LayerWeights& layer, const std::string& prefix, const Backend& backend);
    void place_ffn(LayerWeights& layer, const std::string& prefix, const Backend& backend);
    void add_rows(const std::string& name, LinearWeight& weight, int64_t first_row, int64_t rows,
                  double bits);
    void add_vector(const std::string& name, VectorWeight& weight, int64_t first, int64_t count);
    // The whole of it.
    void add_vector(const std::string& name, VectorWeight& weight);

    void place_messages(const Backend& backend);

    // Of one parameter: what the optimizer keeps of its rows.
    struct State {
        LinearWeight* linear = nullptr;  // or
        VectorWeight* vector = nullptr;
        int64_t first = 0;                             // of the vector
        Tensor master = {};                            // (rows, columns), matrices
        Tensor first_moment = {}, second_moment = {};  // (rows, columns) float32
        Tensor scale = {}, scale_gradient = {}, scale_first_moment = {},
               scale_second_moment = {};  // (rows, groups)
    };
    void add_parameter(Parameter parameter, State state);
    void bind(Parameter& parameter, const State& state);

    const ModelConfig config_;
    const QuantizationConfig quantization_;
    const DType compute_type_;
    const StateShard shard_;
    const ModelUse use_;
    Arena& arena_;
    void* message_buffer_ = nullptr;
    bool quantized_ = false;
    int64_t layer_ = -1;  // of the parameters that are being added
    std::vector<Parameter> parameters_;
    std::vector<ParameterRows> rows_;
    std::vector<std::unique_ptr<State>> states_;  // of each parameter; the arena fills them in
};

}  // namespace train_qat
