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
    std::vector<bfloat16> narrow(rows.narrow_master != nullptr ? values.size() : 0);
    for (int64_t done = 0; done < rows.elements(); done += piece) {
        const int64_t count = std::min(piece, rows.elements() - done);
        fill_normal(values.data(), rows.first_element + done, count, sequence);
        if (narrow.empty()) {
            backend.copy_to_device(rows.master + done, values.data(), count * size_of(DType::float32));
            continue;
        }
        for (int64_t i = 0; i < count; ++i) narrow[i] = values[i];
        backend.copy_to_device(rows.narrow_master + done, narrow.data(), count * size_of(DType::bfloat16));
    }
}

}  // namespace

Parameters::Parameters(const ModelConfig& config, const QuantizationConfig& quantization, DType compute_type,
                       const Backend& backend, Arena& arena, const StateShard& shard)
    : layers(config.layers),
      config_(config),
      quantization_(quantization),
      compute_type_(compute_type),
      shard_(shard),
      arena_(arena) {
    const int64_t width = config.width, head_dim = config.head_dim;
    const int64_t query_rows = config.heads * head_dim, kv_rows = config.kv_heads * head_dim;
    const double bits = quantization.bits;
    if (quantization.enabled() && quantization.group > 0)
        for (int64_t columns : {width, query_rows, config.ffn})
            if (columns % quantization.group != 0)
                throw std::runtime_error("-group " + std::to_string(quantization.group) +
                                         ": does not divide a matrix's " + std::to_string(columns) +
                                         " input columns; choose a width and ffn that are multiples of it");

    place_linear(embedding, config.vocabulary, width, true, backend);
    add_rows("model.embed_tokens.weight", embedding, 0, config.vocabulary,
             quantization.enabled() ? embedding_bits(bits) : 16.0);
    for (int64_t l = 0; l < config.layers; ++l) {
        LayerWeights& layer = layers[l];
        layer_ = l;
        const std::string prefix = "model.layers." + std::to_string(l) + ".";
        place_norm(layer.attention_norm);
        add_norm(prefix + "input_layernorm.weight", layer.attention_norm);
        place_linear(layer.qkv, query_rows + 2 * kv_rows, width, false, backend);
        add_rows(prefix + "self_attn.q_proj.weight", layer.qkv, 0, query_rows, bits);
        add_rows(prefix + "self_attn.k_proj.weight", layer.qkv, query_rows, kv_rows, bits);
        add_rows(prefix + "self_attn.v_proj.weight", layer.qkv, query_rows + kv_rows, kv_rows, bits);
        place_linear(layer.attention_output, width, query_rows, false, backend);
        add_rows(prefix + "self_attn.o_proj.weight", layer.attention_output, 0, width, bits);
        place_norm(layer.ffn_norm);
        add_norm(prefix + "post_attention_layernorm.weight", layer.ffn_norm);
        place_linear(layer.gate_up, 2 * config.ffn, width, false, backend);
        add_rows(prefix + "mlp.gate_proj.weight", layer.gate_up, 0, config.ffn, bits);
        add_rows(prefix + "mlp.up_proj.weight", layer.gate_up, config.ffn, config.ffn, bits);
        place_linear(layer.down, width, config.ffn, false, backend);
        add_rows(prefix + "mlp.down_proj.weight", layer.down, 0, width, bits);
    }
    layer_ = -1;
    place_norm(final_norm);
    add_norm("model.norm.weight", final_norm);
    if (shard.parts > 1) place_messages(backend);
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
    arena_.place(gradients_purpose, weight.gradient, DType::float32, {rows, columns});
    weight.compute.rows = rows;
    weight.compute.columns = columns;
    weight.compute.dtype = compute_type_;
    weight.compute.embedding = is_embedding;
    arena_.place_bytes(compute_purpose, weight.compute.storage,
                       backend.compute_weight_bytes(rows, columns, compute_type_, is_embedding));
    arena_.place(scales_purpose, weight.row_scale_storage, DType::float32, {rows});
}

void Parameters::place_norm(NormWeight& weight) {
    arena_.place(weights_purpose, weight.master, DType::float32, {config_.width});
    arena_.place(gradients_purpose, weight.gradient, DType::float32, {config_.width});
}

void Parameters::add_rows(const std::string& name, LinearWeight& weight, int64_t first_row, int64_t row_count,
                          double bits) {
    Parameter parameter{name, false, bits, layer_, {}, {}};
    ParameterRows& whole = parameter.whole;
    whole.rows = row_count;
    whole.columns = weight.gradient.shape[1];
    whole.compute = &weight.compute;
    whole.first_row = first_row;
    if (bits < 16) {
        whole.group = quantization_.group > 0 ? quantization_.group : whole.columns;
        whole.scale_gradient_factor = scale_gradient_factor(grid_of_bits(bits), whole.elements());
    }
    add_parameter(std::move(parameter), &weight, nullptr);
}

void Parameters::add_norm(const std::string& name, NormWeight& weight) {
    Parameter parameter{name, true, 16.0, layer_, {}, {}};
    parameter.whole.rows = 1;
    parameter.whole.columns = config_.width;
    parameter.whole.decay = false;
    add_parameter(std::move(parameter), nullptr, &weight);
}

void Parameters::add_parameter(Parameter parameter, LinearWeight* linear, NormWeight* norm) {
    parameter.whole.number = static_cast<uint32_t>(parameters_.size());
    const int64_t first = first_row(parameter.whole.rows, shard_.part, shard_.parts);
    const int64_t end = first_row(parameter.whole.rows, shard_.part + 1, shard_.parts);
    parameter.rows = rows_of(parameter.whole, first, end - first);
    const int64_t rows = parameter.rows.rows, columns = parameter.rows.columns;

    auto state = std::make_unique<State>();
    state->linear = linear;
    state->norm = norm;
    if (linear != nullptr) {
        const bool full = quantization_.master_type == DType::float32;
        arena_.place(full ? weights_purpose : narrow_weights_purpose, state->master,
                     quantization_.master_type, {rows, columns});
    }
    for (Tensor* moment : {&state->first_moment, &state->second_moment})
        arena_.place(moments_purpose, *moment, DType::float32, {rows, columns});
    if (parameter.bits < 16)
        for (Tensor* tensor :
             {&state->scale, &state->scale_gradient, &state->scale_first_moment, &state->scale_second_moment})
            arena_.place(scales_purpose, *tensor, DType::float32, {rows, columns / parameter.rows.group});
    parameters_.push_back(std::move(parameter));
    states_.push_back(std::move(state));
}

void Parameters::bind() {
    for (size_t i = 0; i < parameters_.size(); ++i) bind(parameters_[i], *states_[i]);
    use_quantization(false);
}

void Parameters::bind(Parameter& parameter, const State& state) {
    ParameterRows& whole = parameter.whole;
    if (state.norm != nullptr) {
        whole.master = state.norm->master.as<float>();
        whole.gradient = state.norm->gradient.as<float>();
    } else {
        LinearWeight& weight = *state.linear;
        weight.compute.scale_storage = weight.row_scale_storage.as<float>();
        whole.gradient = weight.gradient.as<float>() + whole.first_row * whole.columns;
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
    const std::vector<float> ones(static_cast<size_t>(config_.width), 1.0f);
    for (const Parameter& parameter : parameters_) {
        if (parameter.is_vector) {
            // Every process reads it, whoever keeps it.
            backend.copy_to_device(parameter.whole.master, ones.data(),
                                   static_cast<int64_t>(ones.size() * sizeof(float)));
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
    for (const ParameterRows& rows : rows_) {
        const int64_t bytes = rows.scales() * static_cast<int64_t>(sizeof(float));
        if (bytes == 0) continue;
        backend.fill_zero(rows.scale_first_moment, bytes);
        backend.fill_zero(rows.scale_second_moment, bytes);
    }
}

}  // namespace train_qat
