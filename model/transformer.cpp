#include "model/transformer.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace train_qat {

Transformer::Transformer(Backend& backend, const ModelConfig& config, const QuantizationConfig& quantization,
                         DType compute_type, int64_t batch, const StateShard& shard,
                         const LogitOptions& logit_options, ModelUse use)
    : backend_(backend),
      config_(config),
      quantization_(quantization),
      compute_type_(compute_type),
      batch_(batch),
      logit_options_(logit_options),
      use_(use),
      chunk_rows_(logit_chunk_rows(backend, config, batch, logit_options)),
      parameters_(config_, quantization, compute_type, backend, parameter_arena_, shard, use),
      layers_(config.layers) {
    if (logit_options.type != DType::float32 && logit_options.type != compute_type)
        throw std::logic_error(std::string("Transformer: logits must be float32 or ") +
                               name_of(compute_type) + ", are " + name_of(logit_options.type));
    place_activations();
}

void Transformer::set_sequences(int64_t sequences, int64_t positions) {
    if (sequences < 1 || sequences > batch_ || positions < 1 || positions > config_.sequence_length)
        throw std::logic_error("Transformer: a micro-batch larger than its memory");
    shape_ = {sequences, positions, config_.heads, config_.kv_heads, config_.head_dim};
}

void Transformer::upload_tokens(const int32_t* inputs, const int32_t* targets) {
    const int64_t bytes = shape_.rows() * static_cast<int64_t>(sizeof(int32_t));
    backend_.copy_to_device(tokens_.data, inputs, bytes);
    if (targets != nullptr) backend_.copy_to_device(targets_.data, targets, bytes);
}

// ---- forward

void Transformer::forward() {
    backend_.embedding_forward({.y = active(layers_[0].residual_attention),
                                .tokens = active(tokens_),
                                .weight = parameters_.embedding.compute});
    for (size_t l = 0; l < layers_.size(); ++l) {
        const LayerWeights& weights = parameters_.layers[l];
        LayerActivations& layer = layers_[l];
        // From the second layer on, the stream first takes up what the feed-forward block before it has
        // computed.
        if (l == 0)
            backend_.residual_rmsnorm_forward({.y = active(layer.attention_norm),
                                               .rstd = active(layer.attention_rstd),
                                               .residual_in = active(layer.residual_attention),
                                               .weight = weights.attention_norm.master,
                                               .epsilon = static_cast<float>(config_.norm_epsilon)});
        else
            backend_.residual_rmsnorm_forward(
                {.residual_out = active(layer.residual_attention),
                 .y = active(layer.attention_norm),
                 .rstd = active(layer.attention_rstd),
                 .residual_in = active(layers_[l - 1].residual_ffn),
                 .branch = active(branch_),
                 .column_scale = parameters_.layers[l - 1].down.compute.row_scale(),
                 .weight = weights.attention_norm.master,
                 .epsilon = static_cast<float>(config_.norm_epsilon)});
        forward_attention(weights, layer);
        backend_.residual_rmsnorm_forward({.residual_out = active(layer.residual_ffn),
                                           .y = active(layer.ffn_norm),
                                           .rstd = active(layer.ffn_rstd),
                                           .residual_in = active(layer.residual_attention),
                                           .branch = active(branch_),
                                           .column_scale = weights.attention_output.compute.row_scale(),
                                           .weight = weights.ffn_norm.master,
                                           .epsilon = static_cast<float>(config_.norm_epsilon)});
        forward_ffn(weights, layer);
    }
    backend_.residual_rmsnorm_forward({.residual_out = active(final_residual_),
                                       .y = active(final_norm_),
                                       .rstd = active(final_rstd_),
                                       .residual_in = active(layers_.back().residual_ffn),
                                       .branch = active(branch_),
                                       .column_scale = parameters_.layers.back().down.compute.row_scale(),
                                       .weight = parameters_.final_norm.master,
                                       .epsilon = static_cast<float>(config_.norm_epsilon)});
}

void Transformer::forward_attention(const LayerWeights& weights, LayerActivations& layer) {
    const Tensor log_sum_exp(layer.log_sum_exp.data, DType::float32,
                             {shape_.batch, shape_.heads, shape_.sequence});
    forward_queries_keys_values(weights, layer);
    backend_.attention_forward({.y = active(layer.attention),
                                .log_sum_exp = log_sum_exp,
                                .qkv = active(layer.qkv),
                                .y_remainder = active(layer.attention_rest),
                                .shape = shape_});
    backend_.matmul_forward(
        {.z = active(branch_), .x = active(layer.attention), .weight = weights.attention_output.compute});
}

// Whatever comes first after the matmul applies its column scale.
void Transformer::forward_queries_keys_values(const LayerWeights& weights, LayerActivations& layer) {
    const Tensor x = active(layer.attention_norm), qkv = active(layer.qkv);
    Tensor scale = weights.qkv.compute.row_scale();
    RopeForward rope{
        .qkv = qkv, .cosines = cosines_, .sines = sines_, .column_scale = scale, .shape = shape_};
    if (!config_.attention_biases && !config_.head_norms)
        return backend_.matmul_rope_forward(
            {.matmul = {.z = qkv, .x = x, .weight = weights.qkv.compute}, .rope = rope});

    const Tensor projected = config_.head_norms ? active(layer.qkv_before_norms) : qkv;
    backend_.matmul_forward({.z = projected, .x = x, .weight = weights.qkv.compute});
    if (config_.attention_biases) {
        backend_.bias_forward({.z = projected, .column_scale = scale, .bias = weights.qkv_bias.master});
        scale = Tensor();
    }
    if (config_.head_norms) {
        backend_.head_norm_forward({.y = qkv,
                                    .rstd = active(layer.head_rstd),
                                    .x = projected,
                                    .column_scale = scale,
                                    .query_weight = weights.query_norm.master,
                                    .key_weight = weights.key_norm.master,
                                    .epsilon = static_cast<float>(config_.norm_epsilon),
                                    .shape = shape_});
        scale = Tensor();
    }
    rope.column_scale = scale;
    backend_.rope_forward(rope);
}

void Transformer::forward_ffn(const LayerWeights& weights, LayerActivations& layer) {
    backend_.matmul_swiglu_forward({.matmul = {.z = active(layer.gate_up),
                                               .x = active(layer.ffn_norm),
                                               .weight = weights.gate_up.compute},
                                    .swiglu = {.y = active(layer.hidden),
                                               .gate_up = active(layer.gate_up),
                                               .column_scale = weights.gate_up.compute.row_scale()}});
    backend_.matmul_forward(
        {.z = active(branch_), .x = active(layer.hidden), .weight = weights.down.compute});
}

void Transformer::forward_losses() {
    const int64_t rows = shape_.rows();
    for (int64_t first = 0; first < rows; first += chunk_rows_) {
        const int64_t count = std::min(chunk_rows_, rows - first);
        const Tensor logits = logits_.rows(0, count);
        backend_.matmul_forward(
            {.z = logits, .x = final_norm_.rows(first, count), .weight = parameters_.output_head().compute});
        backend_.cross_entropy({.losses = losses_.rows(first, count),
                                .logits = logits,
                                .targets = targets_.rows(first, count),
                                .column_scale = parameters_.output_head().compute.row_scale()});
    }
}

// ---- backward

void Transformer::forward_and_backward_head(float gradient_factor, bool accumulate) {
    LinearWeight& head = parameters_.output_head();
    const int64_t rows = shape_.rows();
    for (int64_t first = 0; first < rows; first += chunk_rows_) {
        const int64_t count = std::min(chunk_rows_, rows - first);
        const Tensor logits = logits_.rows(0, count);
        const Tensor d_logits = logits.dtype == compute_type_ ? logits : d_logits_.rows(0, count);
        const Tensor input = final_norm_.rows(first, count);
        backend_.matmul_forward({.z = logits, .x = input, .weight = head.compute});
        backend_.cross_entropy({.losses = losses_.rows(first, count),
                                .d_logits = d_logits,
                                .logits = logits,
                                .targets = targets_.rows(first, count),
                                .column_scale = head.compute.row_scale(),
                                .gradient_factor = gradient_factor});
        backend_.matmul_weight_gradient(
            {.dq = head.gradient, .dz = d_logits, .x = input, .accumulate = accumulate || first > 0});
        backend_.matmul_input_gradient(
            {.dx = d_norm_.rows(first, count), .dz = d_logits, .weight = head.compute});
    }
}

void Transformer::backward(bool accumulate, DataParallel* ranks) {
    backend_.rmsnorm_backward({.d_residual = active(d_residual_),
                               .dweight = parameters_.final_norm.gradient,
                               .dz = active(dz_),
                               .dy = active(d_norm_),
                               .residual = active(final_residual_),
                               .rstd = active(final_rstd_),
                               .weight = parameters_.final_norm.master,
                               .column_scale = parameters_.layers.back().down.compute.row_scale(),
                               .accumulate_weight = accumulate,
                               .workspace = workspace_});
    for (size_t l = layers_.size(); l-- > 0;) {
        // dz for the feed-forward block below; the first layer has the embedding below it, which reads
        // d_residual.
        const Tensor next_scale = l > 0 ? parameters_.layers[l - 1].down.compute.row_scale() : Tensor();
        backward_ffn(parameters_.layers[l], layers_[l], accumulate);
        backward_attention(parameters_.layers[l], layers_[l], next_scale, accumulate);
        if (ranks != nullptr) ranks->sum_gradients(static_cast<int64_t>(l));
    }
    // A tied head has already written its part of the gradient.
    Tensor& embedding_gradient = parameters_.embedding.gradient;
    if (!config_.tied && !accumulate) backend_.fill_zero(embedding_gradient.data, embedding_gradient.bytes());
    backend_.embedding_backward({.dq = embedding_gradient,
                                 .dy = active(d_residual_),
                                 .tokens = active(tokens_),
                                 .row_scale = parameters_.embedding.compute.row_scale()});
    if (ranks != nullptr) ranks->sum_gradients(-1);
}

void Transformer::backward_ffn(LayerWeights& weights, LayerActivations& layer, bool accumulate) {
    backend_.matmul_weight_gradient({.dq = weights.down.gradient,
                                     .dz = active(dz_),
                                     .x = active(layer.hidden),
                                     .accumulate = accumulate});
    backend_.matmul_input_gradient(
        {.dx = active(d_hidden_), .dz = active(dz_), .weight = weights.down.compute});
    // The gradient takes the place of gate_up, which nothing reads after this.
    backend_.swiglu_backward({.d_gate_up = active(layer.gate_up),
                              .dy = active(d_hidden_),
                              .gate_up = active(layer.gate_up),
                              .column_scale = weights.gate_up.compute.row_scale()});
    backend_.matmul_weight_gradient({.dq = weights.gate_up.gradient,
                                     .dz = active(layer.gate_up),
                                     .x = active(layer.ffn_norm),
                                     .accumulate = accumulate});
    backend_.matmul_input_gradient(
        {.dx = active(d_norm_), .dz = active(layer.gate_up), .weight = weights.gate_up.compute});
    backend_.rmsnorm_backward({.d_residual = active(d_residual_),
                               .dweight = weights.ffn_norm.gradient,
                               .dz = active(dz_),
                               .dy = active(d_norm_),
                               .residual = active(layer.residual_ffn),
                               .rstd = active(layer.ffn_rstd),
                               .weight = weights.ffn_norm.master,
                               .column_scale = weights.attention_output.compute.row_scale(),
                               .accumulate_residual = true,
                               .accumulate_weight = accumulate,
                               .workspace = workspace_});
}

void Transformer::backward_attention(LayerWeights& weights, LayerActivations& layer, const Tensor& next_scale,
                                     bool accumulate) {
    const Tensor log_sum_exp(layer.log_sum_exp.data, DType::float32,
                             {shape_.batch, shape_.heads, shape_.sequence});
    backend_.matmul_weight_gradient({.dq = weights.attention_output.gradient,
                                     .dz = active(dz_),
                                     .x = active(layer.attention),
                                     .accumulate = accumulate});
    backend_.matmul_input_gradient(
        {.dx = active(d_attention_), .dz = active(dz_), .weight = weights.attention_output.compute});
    backend_.attention_backward({.dqkv = active(d_qkv_),
                                 .dy = active(d_attention_),
                                 .qkv = active(layer.qkv),
                                 .y = active(layer.attention),
                                 .log_sum_exp = log_sum_exp,
                                 .y_remainder = active(layer.attention_rest),
                                 .shape = shape_,
                                 .workspace = workspace_});
    backward_queries_keys_values(weights, layer, accumulate);
    backend_.matmul_weight_gradient({.dq = weights.qkv.gradient,
                                     .dz = active(d_qkv_),
                                     .x = active(layer.attention_norm),
                                     .accumulate = accumulate});
    backend_.matmul_input_gradient(
        {.dx = active(d_norm_), .dz = active(d_qkv_), .weight = weights.qkv.compute});
    backend_.rmsnorm_backward({.d_residual = active(d_residual_),
                               .dweight = weights.attention_norm.gradient,
                               .dz = active(dz_),
                               .dy = active(d_norm_),
                               .residual = active(layer.residual_attention),
                               .rstd = active(layer.attention_rstd),
                               .weight = weights.attention_norm.master,
                               .column_scale = next_scale,
                               .accumulate_residual = true,
                               .accumulate_weight = accumulate,
                               .workspace = workspace_});
}

// From the gradient of rotated queries and keys, and of values, to that of the matmul, in place.
void Transformer::backward_queries_keys_values(LayerWeights& weights, const LayerActivations& layer,
                                               bool accumulate) {
    const Tensor gradient = active(d_qkv_), scale = weights.qkv.compute.row_scale();
    const bool biases = config_.attention_biases, norms = config_.head_norms;
    backend_.rope_backward({.dqkv = gradient,
                            .cosines = cosines_,
                            .sines = sines_,
                            .column_scale = biases || norms ? Tensor() : scale,
                            .shape = shape_});
    if (norms)
        backend_.head_norm_backward({.dx = gradient,
                                     .dquery_weight = weights.query_norm.gradient,
                                     .dkey_weight = weights.key_norm.gradient,
                                     .dy = gradient,
                                     .x = active(layer.qkv_before_norms),
                                     .rstd = active(layer.head_rstd),
                                     .column_scale = biases ? Tensor() : scale,
                                     .query_weight = weights.query_norm.master,
                                     .key_weight = weights.key_norm.master,
                                     .accumulate_weight = accumulate,
                                     .workspace = workspace_,
                                     .shape = shape_});
    if (biases)
        backend_.bias_backward({.dz = gradient,
                                .dbias = weights.qkv_bias.gradient,
                                .column_scale = scale,
                                .accumulate = accumulate,
                                .workspace = workspace_});
}

// ---- whole passes

void Transformer::train_micro_batch(const int32_t* inputs, const int32_t* targets, int64_t micro_batch,
                                    int64_t micro_batches, DataParallel* ranks) {
    set_sequences(batch_, config_.sequence_length);
    upload_tokens(inputs, targets);
    const bool accumulate = micro_batch > 0;
    const double terms = static_cast<double>(shape_.rows() * micro_batches);
    if (ranks != nullptr && ranks->alone()) ranks = nullptr;
    const auto passes = [&] {
        forward();
        forward_and_backward_head(static_cast<float>(1.0 / terms), accumulate);
        backward(accumulate, ranks);
        backend_.sum({.total = loss_total_, .values = active(losses_), .accumulate = accumulate});
        // A record must not end while others still use its memory.
        if (ranks != nullptr) ranks->communicator().wait();
    };
    if (ranks != nullptr && !ranks->communicator().recordable())
        passes();
    else
        // What distinguishes one micro-batch's operations from another's.
        backend_.replay({this, micro_batches, parameters_.quantized(), accumulate, ranks != nullptr}, passes);
    loss_terms_ = (accumulate ? loss_terms_ : 0) + shape_.rows();
}

double Transformer::loss() {
    float total = 0;
    backend_.copy_to_host(&total, loss_total_.data, sizeof total);
    return static_cast<double>(total) / static_cast<double>(loss_terms_);
}

void Transformer::token_losses(const int32_t* inputs, const int32_t* targets, int64_t sequences,
                               int64_t positions, float* losses) {
    set_sequences(sequences, positions);
    upload_tokens(inputs, targets);
    forward();
    forward_losses();
    if (losses != nullptr) backend_.copy_to_host(losses, losses_.data, active(losses_).bytes());
}

double Transformer::evaluate(const int32_t* inputs, const int32_t* targets, int64_t sequences) {
    token_losses(inputs, targets, sequences, config_.sequence_length, nullptr);
    backend_.sum({.total = loss_total_, .values = active(losses_)});
    loss_terms_ = shape_.rows();
    return loss();
}

void Transformer::read_logits(int64_t first, int64_t count, float* logits) {
    const Tensor chunk = logits_.rows(0, count);
    backend_.matmul_forward(
        {.z = chunk, .x = final_norm_.rows(first, count), .weight = parameters_.output_head().compute});
    if (chunk.dtype == DType::float32) {
        backend_.copy_to_host(logits, chunk.data, chunk.bytes());
    } else {
        std::vector<bfloat16> narrow(chunk.elements());
        backend_.copy_to_host(narrow.data(), chunk.data, chunk.bytes());
        std::copy(narrow.begin(), narrow.end(), logits);
    }
    const Tensor row_scale = parameters_.output_head().compute.row_scale();
    if (row_scale.empty()) return;
    std::vector<float> scales(config_.vocabulary);
    backend_.copy_to_host(scales.data(), row_scale.data, row_scale.bytes());
    for (int64_t i = 0; i < count * config_.vocabulary; ++i) logits[i] *= scales[i % config_.vocabulary];
}

void Transformer::logits(const int32_t* tokens, int64_t first, int64_t positions, float* logits) {
    const int64_t T = config_.sequence_length;
    if (first < 0 || first >= positions || positions > T)
        throw std::logic_error("Transformer: logits of positions [" + std::to_string(first) + ", " +
                               std::to_string(positions) + "), has " + std::to_string(T));
    // Positions are padded to a few lengths, so that a growing text does not need new matmuls for every
    // token. What stands behind a position cannot change it: attention is causal.
    constexpr int64_t step = 64;
    const int64_t padded = std::min((positions + step - 1) / step * step, T);
    std::vector<int32_t> padded_tokens(padded, 0);
    std::copy(tokens, tokens + positions, padded_tokens.begin());
    set_sequences(1, padded);
    upload_tokens(padded_tokens.data(), nullptr);
    forward();
    for (int64_t row = first; row < positions; row += chunk_rows_)
        read_logits(row, std::min(chunk_rows_, positions - row), logits + (row - first) * config_.vocabulary);
}

}  // namespace train_qat
