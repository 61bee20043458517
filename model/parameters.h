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

// A tensor that the optimizer sees: a whole weight matrix of the model, or a norm's weight.
struct Parameter {
    std::string name;  // as Hugging Face names it: model.layers.0.self_attn.q_proj.weight
    bool is_vector = false;
    double bits = 16;  // in the quantization-aware range
    ParameterRows rows;
};

// One matmul's weight: one parameter, or several that share their input and stand one below the other.
struct LinearWeight {
    Tensor master;    // (N, K) float32, or bfloat16 where there are no float32 masters
    Tensor gradient;  // (N, K) float32, with respect to the levels until ste_backward_and_norm
    Tensor first_moment, second_moment;
    ComputeWeight compute;
    Tensor row_scale_storage;  // (N) float32
};

struct NormWeight {
    Tensor master, gradient, first_moment, second_moment;  // (C) float32
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
               const Backend& backend, Arena& arena);
    Parameters(const Parameters&) = delete;
    Parameters& operator=(const Parameters&) = delete;

    // Sets the pointers of all ParameterRows; after the arena has memory.
    void bind();

    // Weights of a new model: normal with standard deviation 0.02, the projections into the residual stream
    // divided by sqrt(2 L) so that the stream's variance does not grow with depth (GPT-2), norms one. The
    // value of each weight depends on `seed` and its place only. Quantizes for the current phase.
    void initialize(Backend& backend, uint64_t seed);

    // Switches the grids of all parameters on or off. The caller quantizes afterwards.
    void use_quantization(bool on);
    bool quantized() const { return quantized_; }

    // Initial scales from the present weights, their moments zero. Needs use_quantization(true).
    void initialize_scales(Backend& backend);
    // Makes the matmuls' copies agree with masters and scales.
    void quantize(Backend& backend) const { backend.quantize(rows_); }

    const std::vector<ParameterRows>& rows() const { return rows_; }  // in the order of all()
    const std::vector<Parameter>& all() const { return parameters_; }

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

    struct ScaleStorage {
        Tensor scale, gradient, first_moment, second_moment;  // (rows, groups) float32
    };

    const ModelConfig config_;
    const QuantizationConfig quantization_;
    const DType compute_type_;
    Arena& arena_;
    bool quantized_ = false;
    std::vector<Parameter> parameters_;
    std::vector<ParameterRows> rows_;
    // Of each parameter: where its storage is, resolved by bind().
    struct Source {
        LinearWeight* linear = nullptr;
        NormWeight* norm = nullptr;
        std::unique_ptr<ScaleStorage> scales;
    };
    std::vector<Source> sources_;
};

}  // namespace train_qat
