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

// A tensor that the optimizer sees: a weight matrix of the model, or a norm's weight.
struct Parameter {
    std::string name;  // as Hugging Face names it: model.layers.0.self_attn.q_proj.weight
    bool is_vector = false;
    double bits = 16;    // in the quantization-aware range
    int64_t layer = -1;  // -1: of no layer, the embedding and the last norm
    ParameterRows rows;  // what this process keeps; no rows where it keeps none
    // All rows: their gradient and place in the matmul's copy. Masters, moments and scales only where `rows`
    // is whole too; a vector's master always.
    ParameterRows whole;
};

// One matmul's weight: one parameter, or several that share their input and stand one below the other.
struct LinearWeight {
    Tensor gradient;  // (N, K) float32, with respect to the levels until ste_backward_and_norm
    ComputeWeight compute;
    Tensor row_scale_storage;  // (N) float32
};

struct NormWeight {
    Tensor master, gradient;  // (C) float32
};

struct LayerWeights {
    NormWeight attention_norm;
    LinearWeight qkv;               // [query | key | value] ((H + 2G) D, C)
    LinearWeight attention_output;  // (C, H D)
    NormWeight ffn_norm;
    LinearWeight gate_up;  // [gate | up] (2F, C)
    LinearWeight down;     // (C, F)
};

class Parameters {
  public:
    Parameters(const ModelConfig& config, const QuantizationConfig& quantization, DType compute_type,
               const Backend& backend, Arena& arena, const StateShard& shard = {});
    Parameters(const Parameters&) = delete;
    Parameters& operator=(const Parameters&) = delete;

    // Sets the pointers of all ParameterRows; after the arena has memory.
    void bind();

    // Weights of a new model: normal with standard deviation 0.02, the projections into the residual stream
    // divided by sqrt(2 L) so that the stream's variance does not grow with depth (GPT-2), norms one. The
    // value of each weight depends on `seed` and its place in the model only (kernels/normal_numbers.h), so a
    // process draws just the rows that it keeps. Quantizes them for the current phase.
    void initialize(Backend& backend, uint64_t seed);

    // Switches the grids of all parameters on or off. The caller quantizes afterwards.
    void use_quantization(bool on);
    bool quantized() const { return quantized_; }

    // Initial scales from the present weights, their moments zero. Needs use_quantization(true).
    void initialize_scales(Backend& backend);
    // Makes the kept rows of the matmuls' copies agree with masters and scales.
    void quantize(Backend& backend) const { backend.quantize({.parameters = rows_}); }

    // The kept rows of all parameters that have some here, in the order of all().
    const std::vector<ParameterRows>& rows() const { return rows_; }
    const std::vector<Parameter>& all() const { return parameters_; }
    const StateShard& shard() const { return shard_; }
    // With a shard: room for Backend::weight_messages of all matrices.
    void* message_buffer() const { return message_buffer_; }

    LinearWeight embedding;  // (V, C), also the LM head
    std::vector<LayerWeights> layers;
    NormWeight final_norm;

  private:
    void place_linear(LinearWeight& weight, int64_t rows, int64_t columns, bool embedding,
                      const Backend& backend);
    void place_norm(NormWeight& weight);
    void add_rows(const std::string& name, LinearWeight& weight, int64_t first_row, int64_t rows,
                  double bits);
    void add_norm(const std::string& name, NormWeight& weight);

    void place_messages(const Backend& backend);
    void add_parameter(Parameter parameter, LinearWeight* linear, NormWeight* norm);

    // Of one parameter: what the optimizer keeps of its rows.
    struct State {
        LinearWeight* linear = nullptr;  // or
        NormWeight* norm = nullptr;
        Tensor master;                                                          // (rows, columns), matrices
        Tensor first_moment, second_moment;                                     // (rows, columns) float32
        Tensor scale, scale_gradient, scale_first_moment, scale_second_moment;  // (rows, groups) float32
    };
    void bind(Parameter& parameter, const State& state);

    const ModelConfig config_;
    const QuantizationConfig quantization_;
    const DType compute_type_;
    const StateShard shard_;
    Arena& arena_;
    void* message_buffer_ = nullptr;
    bool quantized_ = false;
    int64_t layer_ = -1;  // of the parameters that are being added
    std::vector<Parameter> parameters_;
    std::vector<ParameterRows> rows_;
    std::vector<std::unique_ptr<State>> states_;  // of each parameter; the arena fills them in
};

}  // namespace train_qat
