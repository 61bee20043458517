#include "model/parameters.h"

#include <cmath>
#include <numbers>
#include <stdexcept>

namespace train_qat {

namespace {

constexpr const char* weights_purpose = "master weights (float32)";
constexpr const char* narrow_weights_purpose = "weights (bfloat16, no float32 masters)";
constexpr const char* gradients_purpose = "gradients (float32)";
constexpr const char* moments_purpose = "AdamW moments (float32)";
constexpr const char* compute_purpose = "matmul weights";
constexpr const char* scales_purpose = "scales, gradients, moments";

// SplitMix64's finalizer: a well-mixed function of a counter (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Standard normal numbers by Box and Muller's method from a hash of (stream, pair index).
void fill_normal(std::vector<float>& values, uint64_t stream, double deviation) {
    for (size_t i = 0; i < values.size(); i += 2) {
        const uint64_t first = mix(stream ^ mix(i)), second = mix(first);
        const double u = (static_cast<double>(first >> 11) + 1.0) * 0x1p-53;  // (0, 1]
        const double angle = 2.0 * std::numbers::pi * static_cast<double>(second >> 11) * 0x1p-53;
        const double radius = deviation * std::sqrt(-2.0 * std::log(u));
        values[i] = static_cast<float>(radius * std::cos(angle));
        if (i + 1 < values.size()) values[i + 1] = static_cast<float>(radius * std::sin(angle));
    }
}

bool writes_to_residual(const std::string& name) {
    return name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
}

}  // namespace

Parameters::Parameters(const ModelConfig& config, const QuantizationConfig& quantization, DType compute_type,
                       const Backend& backend, Arena& arena)
    : layers(config.layers),
      config_(config),
      quantization_(quantization),
      compute_type_(compute_type),
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
    place_norm(final_norm);
    add_norm("model.norm.weight", final_norm);
}

void Parameters::place_linear(LinearWeight& weight, int64_t rows, int64_t columns, bool is_embedding,
                              const Backend& backend) {
    arena_.place(quantization_.master_type == DType::float32 ? weights_purpose : narrow_weights_purpose,
                 weight.master, quantization_.master_type, {rows, columns});
    arena_.place(gradients_purpose, weight.gradient, DType::float32, {rows, columns});
    arena_.place(moments_purpose, weight.first_moment, DType::float32, {rows, columns});
    arena_.place(moments_purpose, weight.second_moment, DType::float32, {rows, columns});
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
    arena_.place(moments_purpose, weight.first_moment, DType::float32, {config_.width});
    arena_.place(moments_purpose, weight.second_moment, DType::float32, {config_.width});
}

void Parameters::add_rows(const std::string& name, LinearWeight& weight, int64_t first_row, int64_t row_count,
                          double bits) {
    Parameter parameter{name, false, bits, {}};
    parameter.rows.rows = row_count;
    parameter.rows.columns = weight.master.shape[1];
    parameter.rows.compute = &weight.compute;
    parameter.rows.first_row = first_row;
    Source source{&weight, nullptr, nullptr};
    if (bits < 16) {
        const int64_t group = quantization_.group > 0 ? quantization_.group : parameter.rows.columns;
        parameter.rows.group = group;
        parameter.rows.scale_gradient_factor =
            scale_gradient_factor(grid_of_bits(bits), parameter.rows.elements());
        source.scales = std::make_unique<ScaleStorage>();
        const int64_t groups = parameter.rows.columns / group;
        for (Tensor* tensor : {&source.scales->scale, &source.scales->gradient, &source.scales->first_moment,
                               &source.scales->second_moment})
            arena_.place(scales_purpose, *tensor, DType::float32, {row_count, groups});
    }
    parameters_.push_back(std::move(parameter));
    sources_.push_back(std::move(source));
}

void Parameters::add_norm(const std::string& name, NormWeight& weight) {
    Parameter parameter{name, true, 16.0, {}};
    parameter.rows.rows = 1;
    parameter.rows.columns = config_.width;
    parameter.rows.decay = false;
    parameters_.push_back(std::move(parameter));
    sources_.push_back({nullptr, &weight, nullptr});
}

void Parameters::bind() {
    const auto from_row = [](const Tensor& tensor, int64_t first_row, int64_t columns) {
        return tensor.as<float>() + first_row * columns;
    };
    for (size_t i = 0; i < parameters_.size(); ++i) {
        ParameterRows& rows = parameters_[i].rows;
        const Source& source = sources_[i];
        if (source.norm != nullptr) {
            rows.master = source.norm->master.as<float>();
            rows.gradient = source.norm->gradient.as<float>();
            rows.first_moment = source.norm->first_moment.as<float>();
            rows.second_moment = source.norm->second_moment.as<float>();
            continue;
        }
        LinearWeight& weight = *source.linear;
        weight.compute.scale_storage = weight.row_scale_storage.as<float>();
        if (weight.master.dtype == DType::float32)
            rows.master = from_row(weight.master, rows.first_row, rows.columns);
        else
            rows.narrow_master = weight.master.as<bfloat16>() + rows.first_row * rows.columns;
        rows.gradient = from_row(weight.gradient, rows.first_row, rows.columns);
        rows.first_moment = from_row(weight.first_moment, rows.first_row, rows.columns);
        rows.second_moment = from_row(weight.second_moment, rows.first_row, rows.columns);
        if (source.scales == nullptr) continue;
        rows.scale = source.scales->scale.as<float>();
        rows.scale_gradient = source.scales->gradient.as<float>();
        rows.scale_first_moment = source.scales->first_moment.as<float>();
        rows.scale_second_moment = source.scales->second_moment.as<float>();
    }
    use_quantization(false);
}

void Parameters::initialize(Backend& backend, uint64_t seed) {
    const double residual_factor = 1.0 / std::sqrt(2.0 * static_cast<double>(config_.layers));
    std::vector<float> values;
    for (size_t i = 0; i < parameters_.size(); ++i) {
        const Parameter& parameter = parameters_[i];
        values.assign(parameter.rows.elements(), 1.0f);
        if (!parameter.is_vector)
            fill_normal(values, mix(seed * 0x10001 + i),
                        0.02 * (writes_to_residual(parameter.name) ? residual_factor : 1.0));
        if (parameter.rows.narrow_master == nullptr) {
            backend.copy_to_device(parameter.rows.master, values.data(),
                                   static_cast<int64_t>(values.size() * sizeof(float)));
            continue;
        }
        const std::vector<bfloat16> narrow(values.begin(), values.end());
        backend.copy_to_device(parameter.rows.narrow_master, narrow.data(),
                               static_cast<int64_t>(narrow.size() * sizeof(bfloat16)));
    }
    quantize(backend);
}

void Parameters::use_quantization(bool on) {
    quantized_ = on;
    rows_.clear();
    for (Parameter& parameter : parameters_) {
        parameter.rows.grid = on ? grid_of_bits(parameter.bits) : Grid::none;
        rows_.push_back(parameter.rows);
    }
}

void Parameters::initialize_scales(Backend& backend) {
    if (!quantized_) throw std::logic_error("Parameters: scales without quantization");
    backend.initialize_scales(rows_);
    for (const ParameterRows& rows : rows_) {
        const int64_t bytes = rows.scales() * static_cast<int64_t>(sizeof(float));
        if (bytes == 0) continue;
        backend.fill_zero(rows.scale_first_moment, bytes);
        backend.fill_zero(rows.scale_second_moment, bytes);
    }
}

}  // namespace train_qat
