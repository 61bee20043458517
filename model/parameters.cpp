#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/normal_numbers.h"
#include "kernels/ranks/communicator.h"

namespace train_qat {

namespace {

constexpr const char* weights_purpose = "master weights (float32)";
constexpr const char* narrow_weights_purpose = "weights (bfloat16, no float32 masters)";
constexpr const char* gradients_purpose = "gradients (float32)";
constexpr const char* moments_purpose = "AdamW moments (float32)";
constexpr const char* compute_purpose = "matmul weights";
constexpr const char* scales_purpose = "scales, gradients, moments";

bool writes_to_residual(const std::string& name) {
    return name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
}

// The weights of `rows`, in pieces that stay in the caches on their way to the device.
void draw_normal(Backend& backend, const ParameterRows& rows, const NormalSequence& sequence) {
    constexpr int64_t piece = int64_t{1} << 20;
    std::vector<float> values(static_cast<size_t>(std::min(piece, rows.elements())));
    for (int64_t done = 0; done < rows.elements(); done += piece) {
        const int64_t count = std::min(piece, rows.elements() - done);
        fill_normal(values.data(), rows.first_element + done, count, sequence);
        set_masters(backend, rows, done, values.data(), count);
    }
}

}  // namespace

void set_masters(Backend& backend, const ParameterRows& rows, int64_t first, const float* values,
                 int64_t count) {
    if (rows.narrow_master == nullptr)
        return backend.copy_to_device(rows.master + first, values, count * size_of(DType::float32));
    const std::vector<bfloat16> narrow(values, values + count);
    backend.copy_to_device(rows.narrow_master + first, narrow.data(), count * size_of(DType::bfloat16));
}

Parameters::Parameters(const ModelConfig& config, const QuantizationConfig& quantization, DType compute_type,
                       const Backend& backend, Arena& arena, const StateShard& shard, ModelUse use)
    : layers(config.layers),
      config_(config),
      quantization_(quantization),
      compute_type_(compute_type),
      shard_(shard),
      use_(use),
      arena_(arena) {
    const int64_t width = config.width;
    if (quantization.enabled() && quantization.group > 0)
        for (int64_t columns : {width, config.heads * config.head_dim, config.ffn})
            if (columns % quantization.group != 0)
                throw std::runtime_error(
                    "-group " + std::to_string(quantization.group) + ": does not divide a matrix's " +
                    std::to_string(columns) +
                    " input columns; give another one (0: a scale for each row), or of a "
                    "new model -width and -ffn that are multiples of it");

    const double ends_bits = quantization.enabled() ? embedding_bits(quantization.bits) : 16.0;
    place_linear(embedding, config.vocabulary, width, true, backend);
    add_rows("model.embed_tokens.weight", embedding, 0, config.vocabulary, ends_bits);
    for (layer_ = 0; layer_ < config.layers; ++layer_) {
        const std::string prefix = "model.layers." + std::to_string(layer_) + ".";
        place_attention(layers[layer_], prefix, backend);
        place_ffn(layers[layer_], prefix, backend);
    }
    layer_ = -1;
    place_vector(final_norm, width);
    add_vector("model.norm.weight", final_norm);
    if (!config.tied) {
        place_linear(untied_head, config.vocabulary, width, false, backend);
        add_rows("lm_head.weight", untied_head, 0, config.vocabulary, ends_bits);
    }
    if (shard.parts > 1) place_messages(backend);
}

void Parameters::place_attention(LayerWeights& layer, const std::string& prefix, const Backend& backend) {
    const int64_t query_rows = config_.heads * config_.head_dim,
                  kv_rows = config_.kv_heads * config_.head_dim;
    const double bits = quantization_.bits;
    place_vector(layer.attention_norm, config_.width);
    add_vector(prefix + "input_layernorm.weight", layer.attention_norm);
    place_linear(layer.qkv, query_rows + 2 * kv_rows, config_.width, false, backend);
    add_rows(prefix + "self_attn.q_proj.weight", layer.qkv, 0, query_rows, bits);
    add_rows(prefix + "self_attn.k_proj.weight", layer.qkv, query_rows, kv_rows, bits);
    add_rows(prefix + "self_attn.v_proj.weight", layer.qkv, query_rows + kv_rows, kv_rows, bits);
    if (config_.attention_biases) {
        place_vector(layer.qkv_bias, query_rows + 2 * kv_rows);
        add_vector(prefix + "self_attn.q_proj.bias", layer.qkv_bias, 0, query_rows);
        add_vector(prefix + "self_attn.k_proj.bias", layer.qkv_bias, query_rows, kv_rows);
        add_vector(prefix + "self_attn.v_proj.bias", layer.qkv_bias, query_rows + kv_rows, kv_rows);
    }
    if (config_.head_norms) {
        place_vector(layer.query_norm, config_.head_dim);
        add_vector(prefix + "self_attn.q_norm.weight", layer.query_norm);
        place_vector(layer.key_norm, config_.head_dim);
        add_vector(prefix + "self_attn.k_norm.weight", layer.key_norm);
    }
    place_linear(layer.attention_output, config_.width, query_rows, false, backend);
    add_rows(prefix + "self_attn.o_proj.weight", layer.attention_output, 0, config_.width, bits);
}

void Parameters::place_ffn(LayerWeights& layer, const std::string& prefix, const Backend& backend) {
    const double bits = quantization_.bits;
    place_vector(layer.ffn_norm, config_.width);
    add_vector(prefix + "post_attention_layernorm.weight", layer.ffn_norm);
    place_linear(layer.gate_up, 2 * config_.ffn, config_.width, false, backend);
    add_rows(prefix + "mlp.gate_proj.weight", layer.gate_up, 0, config_.ffn, bits);
    add_rows(prefix + "mlp.up_proj.weight", layer.gate_up, config_.ffn, config_.ffn, bits);
    place_linear(layer.down, config_.width, config_.ffn, false, backend);
    add_rows(prefix + "mlp.down_proj.weight", layer.down, 0, config_.width, bits);
}

// Enough for both step ranges.
void Parameters::place_messages(const Backend& backend) {
    int64_t full_precision = 0, quantized = 0;
    for (const Parameter& parameter : parameters_) {
        if (parameter.is_vector) continue;
        ParameterRows rows = parameter.whole;
        full_precision += backend.weight_message_bytes(rows);
        rows.grid = grid_of_bits(parameter.bits);
        quantized += backend.weight_message_bytes(rows);
    }
    arena_.place_bytes("weights on their way between ranks", message_buffer_,
                       std::max(full_precision, quantized));
}

void Parameters::place_linear(LinearWeight& weight, int64_t rows, int64_t columns, bool is_embedding,
                              const Backend& backend) {
    if (use_ == ModelUse::training)
        arena_.place(gradients_purpose, weight.gradient, DType::float32, {rows, columns});
    weight.compute.rows = rows;
    weight.compute.columns = columns;
    weight.compute.dtype = compute_type_;
    weight.compute.embedding = is_embedding;
    arena_.place_bytes(compute_purpose, weight.compute.storage,
                       backend.compute_weight_bytes(rows, columns, compute_type_, is_embedding));
    arena_.place(scales_purpose, weight.row_scale_storage, DType::float32, {rows});
}

void Parameters::place_vector(VectorWeight& weight, int64_t count) {
    arena_.place(weights_purpose, weight.master, DType::float32, {count});
    if (use_ == ModelUse::training) arena_.place(gradients_purpose, weight.gradient, DType::float32, {count});
}

void Parameters::add_rows(const std::string& name, LinearWeight& weight, int64_t first_row, int64_t row_count,
                          double bits) {
    Parameter parameter{name, false, bits, layer_, {}, {}};
    ParameterRows& whole = parameter.whole;
    whole.rows = row_count;
    whole.columns = weight.compute.columns;
    whole.compute = &weight.compute;
    whole.first_row = first_row;
    if (bits < 16) {
        whole.group = quantization_.group > 0 ? quantization_.group : whole.columns;
        whole.scale_gradient_factor = scale_gradient_factor(grid_of_bits(bits), whole.elements());
    }
    add_parameter(std::move(parameter), {.linear = &weight});
}

void Parameters::add_vector(const std::string& name, VectorWeight& weight, int64_t first, int64_t count) {
    Parameter parameter{name, true, 16.0, layer_, {}, {}};
    parameter.whole.rows = 1;
    parameter.whole.columns = count;
    parameter.whole.decay = false;
    add_parameter(std::move(parameter), {.vector = &weight, .first = first});
}

void Parameters::add_vector(const std::string& name, VectorWeight& weight) {
    add_vector(name, weight, 0, weight.master.elements());
}

void Parameters::add_parameter(Parameter parameter, State of_parameter) {
    parameter.whole.number = static_cast<uint32_t>(parameters_.size());
    const int64_t first = first_row(parameter.whole.rows, shard_.part, shard_.parts);
    const int64_t end = first_row(parameter.whole.rows, shard_.part + 1, shard_.parts);
    parameter.rows = rows_of(parameter.whole, first, end - first);
    const int64_t rows = parameter.rows.rows, columns = parameter.rows.columns;

    auto state = std::make_unique<State>(std::move(of_parameter));
    if (state->linear != nullptr) {
        const bool full = quantization_.master_type == DType::float32;
        arena_.place(full ? weights_purpose : narrow_weights_purpose, state->master,
                     quantization_.master_type, {rows, columns});
    }
    const bool training = use_ == ModelUse::training;
    if (training)
        for (Tensor* moment : {&state->first_moment, &state->second_moment})
            arena_.place(moments_purpose, *moment, DType::float32, {rows, columns});
    if (parameter.bits < 16) {
        const std::initializer_list<int64_t> shape{rows, columns / parameter.rows.group};
        arena_.place(scales_purpose, state->scale, DType::float32, shape);
        if (training)
            for (Tensor* tensor :
                 {&state->scale_gradient, &state->scale_first_moment, &state->scale_second_moment})
                arena_.place(scales_purpose, *tensor, DType::float32, shape);
    }
    parameters_.push_back(std::move(parameter));
    states_.push_back(std::move(state));
}

void Parameters::bind() {
    for (size_t i = 0; i < parameters_.size(); ++i) bind(parameters_[i], *states_[i]);
    use_quantization(false);
}

void Parameters::bind(Parameter& parameter, const State& state) {
    ParameterRows& whole = parameter.whole;
    const bool training = use_ == ModelUse::training;
    if (state.vector != nullptr) {
        whole.master = state.vector->master.as<float>() + state.first;
        if (training) whole.gradient = state.vector->gradient.as<float>() + state.first;
    } else {
        LinearWeight& weight = *state.linear;
        weight.compute.scale_storage = weight.row_scale_storage.as<float>();
        if (training) whole.gradient = weight.gradient.as<float>() + whole.first_row * whole.columns;
    }
    const int64_t rows = parameter.rows.rows;
    const int64_t first = parameter.rows.first_element / whole.columns;
    parameter.rows = rows_of(whole, first, rows);
    const auto set_state = [&state](ParameterRows& kept) {
        if (state.linear != nullptr && state.master.dtype == DType::float32)
            kept.master = state.master.as<float>();
        else if (state.linear != nullptr)
            kept.narrow_master = state.master.as<bfloat16>();
        kept.first_moment = state.first_moment.as<float>();
        kept.second_moment = state.second_moment.as<float>();
        kept.scale = state.scale.as<float>();
        kept.scale_gradient = state.scale_gradient.as<float>();
        kept.scale_first_moment = state.scale_first_moment.as<float>();
        kept.scale_second_moment = state.scale_second_moment.as<float>();
    };
    set_state(parameter.rows);
    if (rows == whole.rows) set_state(whole);
}

void Parameters::initialize(Backend& backend, uint64_t seed) {
    const double residual_factor = 1.0 / std::sqrt(2.0 * static_cast<double>(config_.layers));
    for (const Parameter& parameter : parameters_) {
        if (parameter.is_vector) {
            const std::vector<float> values(static_cast<size_t>(parameter.whole.columns),
                                            parameter.name.ends_with(".bias") ? 0.0f : 1.0f);
            // Every process reads it, whoever keeps it.
            set_masters(backend, parameter.whole, 0, values.data(), parameter.whole.columns);
            continue;
        }
        const double deviation = 0.02 * (writes_to_residual(parameter.name) ? residual_factor : 1.0);
        draw_normal(
            backend, parameter.rows,
            {.seed = seed, .stream = parameter.rows.number, .deviation = static_cast<float>(deviation)});
    }
    quantize(backend);
}

void Parameters::use_quantization(bool on) {
    quantized_ = on;
    rows_.clear();
    for (Parameter& parameter : parameters_) {
        parameter.rows.grid = parameter.whole.grid = on ? grid_of_bits(parameter.bits) : Grid::none;
        if (parameter.rows.rows > 0) rows_.push_back(parameter.rows);
    }
}

void Parameters::initialize_scales(Backend& backend) {
    if (!quantized_) throw std::logic_error("Parameters: scales without quantization");
    backend.initialize_scales({.parameters = rows_});
    if (use_ == ModelUse::inference) return;  // there are no moments
    for (const ParameterRows& rows : rows_) {
        const int64_t bytes = rows.scales() * static_cast<int64_t>(sizeof(float));
        if (bytes == 0) continue;
        backend.fill_zero(rows.scale_first_moment, bytes);
        backend.fill_zero(rows.scale_second_moment, bytes);
    }
}

}  // namespace train_qat
