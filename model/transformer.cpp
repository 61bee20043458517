#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {

namespace {

// Rows of logits that exist at a time. Fewer cost matmul efficiency, more cost cache.
constexpr int64_t maximum_chunk_rows = 512;

std::string gibibytes(int64_t bytes) {
    const bool large = bytes >= int64_t{1} << 30;
    return formatted("%.2f %s", static_cast<double>(bytes) / (large ? 1 << 30 : 1 << 20),
                     large ? "GiB" : "MiB");
}

}  // namespace

Transformer::Transformer(Backend& backend, const ModelConfig& config, const QuantizationConfig& quantization,
                         DType compute_type, int64_t batch, const StateShard& shard)
    : backend_(backend),
      config_(config),
      quantization_(quantization),
      compute_type_(compute_type),
      batch_(batch),
      chunk_rows_(std::min(maximum_chunk_rows, batch * config.sequence_length)),
      parameters_(config_, quantization, compute_type, backend, parameter_arena_, shard),
      layers_(config.layers) {
    place_activations();
}

void Transformer::place_activations() {
    const int64_t rows = batch_ * config_.sequence_length, width = config_.width;
    const int64_t head_columns = config_.heads * config_.head_dim;
    set_sequences(batch_, config_.sequence_length);
    Arena& arena = activation_arena_;
    const char* saved = "activations kept for the backward pass";
    const char* passing = "activations and gradients in passing";
    for (LayerActivations& layer : layers_) {
        arena.place(saved, layer.residual_attention, DType::float32, {rows, width});
        arena.place(saved, layer.attention_norm, compute_type_, {rows, width});
        arena.place(saved, layer.attention_rstd, DType::float32, {rows});
        arena.place(saved, layer.qkv, compute_type_, {rows, shape_.qkv_columns()});
        arena.place(saved, layer.attention, compute_type_, {rows, head_columns});
        arena.place(saved, layer.log_sum_exp, DType::float32, {rows * config_.heads});
        arena.place(saved, layer.residual_ffn, DType::float32, {rows, width});
        arena.place(saved, layer.ffn_norm, compute_type_, {rows, width});
        arena.place(saved, layer.ffn_rstd, DType::float32, {rows});
        arena.place(saved, layer.gate_up, compute_type_, {rows, 2 * config_.ffn});
        arena.place(saved, layer.hidden, compute_type_, {rows, config_.ffn});
    }
    arena.place(saved, final_residual_, DType::float32, {rows, width});
    arena.place(saved, final_norm_, compute_type_, {rows, width});
    arena.place(saved, final_rstd_, DType::float32, {rows});
    arena.place(passing, cosines_, DType::float32, {config_.sequence_length, config_.head_dim / 2});
    arena.place(passing, sines_, DType::float32, {config_.sequence_length, config_.head_dim / 2});
    arena.place(passing, tokens_, DType::int32, {rows});
    arena.place(passing, targets_, DType::int32, {rows});
    arena.place(passing, losses_, DType::float32, {rows});
    arena.place(passing, loss_total_, DType::float32, {1});
    arena.place(passing, branch_, compute_type_, {rows, width});
    arena.place(passing, d_residual_, DType::float32, {rows, width});
    arena.place(passing, dz_, compute_type_, {rows, width});
    arena.place(passing, d_norm_, compute_type_, {rows, width});
    arena.place(passing, d_hidden_, compute_type_, {rows, config_.ffn});
    arena.place(passing, d_attention_, compute_type_, {rows, head_columns});
    arena.place(passing, d_qkv_, compute_type_, {rows, shape_.qkv_columns()});
    arena.place("a chunk of logits and their gradient", logits_, DType::float32,
                {chunk_rows_, config_.vocabulary});
    arena.place("a chunk of logits and their gradient", d_logits_, compute_type_,
                {chunk_rows_, config_.vocabulary});
    arena.place_bytes("workspace of operations", workspace_,
                      std::max(backend_.rmsnorm_backward_workspace(rows, width),
                               backend_.attention_backward_workspace(shape_)));
}

int64_t Transformer::memory_bytes() const {
    return parameter_arena_.bytes() + activation_arena_.bytes();
}

std::string Transformer::memory_table() const {
    std::string table;
    const auto line = [&table](const std::string& name, int64_t bytes) {
        table += formatted("  %-42s %12s\n", name.c_str(), gibibytes(bytes).c_str());
    };
    for (const Arena* arena : {&parameter_arena_, &activation_arena_})
        for (const Arena::Purpose& purpose : arena->purposes()) line(purpose.name, purpose.bytes);
    line("total", memory_bytes());
    return table;
}

void Transformer::allocate() {
    const int64_t available = backend_.available_memory();
    if (memory_bytes() > available)
        throw std::runtime_error("not enough memory: this run needs " + gibibytes(memory_bytes()) + ", " +
                                 gibibytes(available) + " are available; " + what_would_fit(available) +
                                 " (-plan prints the table)");
    parameter_arena_.allocate(backend_);
    activation_arena_.allocate(backend_);
    parameters_.bind();
    fill_rope_tables();
}

std::string Transformer::what_would_fit(int64_t bytes) const {
    const auto needed = [this](int64_t batch) {
        return Transformer(backend_, config_, quantization_, compute_type_, batch, parameters_.shard())
            .memory_bytes();
    };
    if (needed(1) > bytes)
        return "with -batch 1 it needs " + gibibytes(needed(1)) +
               ": reduce -n or -seq_len, or use another device";
    int64_t fits = 1, too_large = batch_;
    while (too_large - fits > 1) {
        const int64_t middle = fits + (too_large - fits) / 2;
        (needed(middle) <= bytes ? fits : too_large) = middle;
    }
    return "-batch " + std::to_string(fits) + " would fit (" + gibibytes(needed(fits)) +
           "); -grad_accum keeps the tokens of a step";
}

void Transformer::fill_rope_tables() {
    const int64_t half = config_.head_dim / 2;
    std::vector<float> cosines(config_.sequence_length * half), sines(cosines.size());
    for (int64_t t = 0; t < config_.sequence_length; ++t)
        for (int64_t i = 0; i < half; ++i) {
            const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config_.head_dim);
            const double angle = static_cast<double>(t) * std::pow(config_.rope_theta, exponent);
            cosines[t * half + i] = static_cast<float>(std::cos(angle));
            sines[t * half + i] = static_cast<float>(std::sin(angle));
        }
    backend_.copy_to_device(cosines_.data, cosines.data(), cosines_.bytes());
    backend_.copy_to_device(sines_.data, sines.data(), sines_.bytes());
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
    const Tensor none;
    backend_.embedding_forward(active(layers_[0].residual_attention), active(tokens_),
                               parameters_.embedding.compute);
    for (size_t l = 0; l < layers_.size(); ++l) {
        const LayerWeights& weights = parameters_.layers[l];
        LayerActivations& layer = layers_[l];
        // From the second layer on, the stream first takes up what the feed-forward block before it has
        // computed.
        if (l == 0)
            backend_.residual_rmsnorm_forward(none, active(layer.attention_norm),
                                              active(layer.attention_rstd), active(layer.residual_attention),
                                              none, none, weights.attention_norm.master,
                                              config_.norm_epsilon);
        else
            backend_.residual_rmsnorm_forward(active(layer.residual_attention), active(layer.attention_norm),
                                              active(layer.attention_rstd),
                                              active(layers_[l - 1].residual_ffn), active(branch_),
                                              parameters_.layers[l - 1].down.compute.row_scale(),
                                              weights.attention_norm.master, config_.norm_epsilon);
        forward_attention(weights, layer);
        backend_.residual_rmsnorm_forward(active(layer.residual_ffn), active(layer.ffn_norm),
                                          active(layer.ffn_rstd), active(layer.residual_attention),
                                          active(branch_), weights.attention_output.compute.row_scale(),
                                          weights.ffn_norm.master, config_.norm_epsilon);
        forward_ffn(weights, layer);
    }
    backend_.residual_rmsnorm_forward(active(final_residual_), active(final_norm_), active(final_rstd_),
                                      active(layers_.back().residual_ffn), active(branch_),
                                      parameters_.layers.back().down.compute.row_scale(),
                                      parameters_.final_norm.master, config_.norm_epsilon);
}

void Transformer::forward_attention(const LayerWeights& weights, LayerActivations& layer) {
    const Tensor log_sum_exp(layer.log_sum_exp.data, DType::float32,
                             {shape_.batch, shape_.heads, shape_.sequence});
    backend_.matmul_forward(active(layer.qkv), active(layer.attention_norm), weights.qkv.compute);
    backend_.rope_forward(active(layer.qkv), cosines_, sines_, weights.qkv.compute.row_scale(), shape_);
    backend_.attention_forward(active(layer.attention), log_sum_exp, active(layer.qkv), shape_);
    backend_.matmul_forward(active(branch_), active(layer.attention), weights.attention_output.compute);
}

void Transformer::forward_ffn(const LayerWeights& weights, LayerActivations& layer) {
    backend_.matmul_forward(active(layer.gate_up), active(layer.ffn_norm), weights.gate_up.compute);
    backend_.swiglu_forward(active(layer.hidden), active(layer.gate_up), weights.gate_up.compute.row_scale());
    backend_.matmul_forward(active(branch_), active(layer.hidden), weights.down.compute);
}

void Transformer::forward_losses() {
    const int64_t rows = shape_.rows();
    for (int64_t first = 0; first < rows; first += chunk_rows_) {
        const int64_t count = std::min(chunk_rows_, rows - first);
        const Tensor logits = logits_.rows(0, count);
        backend_.matmul_forward(logits, final_norm_.rows(first, count), parameters_.embedding.compute);
        backend_.cross_entropy(losses_.rows(first, count), Tensor(), logits, targets_.rows(first, count),
                               parameters_.embedding.compute.row_scale(), 0.0f);
    }
}

// ---- backward

void Transformer::forward_and_backward_head(float gradient_factor, bool accumulate) {
    LinearWeight& head = parameters_.embedding;
    const int64_t rows = shape_.rows();
    for (int64_t first = 0; first < rows; first += chunk_rows_) {
        const int64_t count = std::min(chunk_rows_, rows - first);
        const Tensor logits = logits_.rows(0, count), d_logits = d_logits_.rows(0, count);
        const Tensor input = final_norm_.rows(first, count);
        backend_.matmul_forward(logits, input, head.compute);
        backend_.cross_entropy(losses_.rows(first, count), d_logits, logits, targets_.rows(first, count),
                               head.compute.row_scale(), gradient_factor);
        backend_.matmul_weight_gradient(head.gradient, d_logits, input, accumulate || first > 0);
        backend_.matmul_input_gradient(d_norm_.rows(first, count), d_logits, head.compute);
    }
}

void Transformer::backward(bool accumulate, DataParallel* ranks) {
    backend_.rmsnorm_backward(
        active(d_residual_), parameters_.final_norm.gradient, active(dz_), active(d_norm_),
        active(final_residual_), active(final_rstd_), parameters_.final_norm.master,
        parameters_.layers.back().down.compute.row_scale(), false, accumulate, workspace_);
    for (size_t l = layers_.size(); l-- > 0;) {
        // dz for the feed-forward block below; the first layer has the embedding below it, which reads
        // d_residual.
        const Tensor next_scale = l > 0 ? parameters_.layers[l - 1].down.compute.row_scale() : Tensor();
        backward_ffn(parameters_.layers[l], layers_[l], accumulate);
        backward_attention(parameters_.layers[l], layers_[l], next_scale, accumulate);
        if (ranks != nullptr) ranks->sum_gradients(static_cast<int64_t>(l));
    }
    backend_.embedding_backward(parameters_.embedding.gradient, active(d_residual_), active(tokens_),
                                parameters_.embedding.compute.row_scale());
    if (ranks != nullptr) ranks->sum_gradients(-1);
}

void Transformer::backward_ffn(LayerWeights& weights, LayerActivations& layer, bool accumulate) {
    backend_.matmul_weight_gradient(weights.down.gradient, active(dz_), active(layer.hidden), accumulate);
    backend_.matmul_input_gradient(active(d_hidden_), active(dz_), weights.down.compute);
    // The gradient takes the place of gate_up, which nothing reads after this.
    backend_.swiglu_backward(active(layer.gate_up), active(d_hidden_), active(layer.gate_up),
                             weights.gate_up.compute.row_scale());
    backend_.matmul_weight_gradient(weights.gate_up.gradient, active(layer.gate_up), active(layer.ffn_norm),
                                    accumulate);
    backend_.matmul_input_gradient(active(d_norm_), active(layer.gate_up), weights.gate_up.compute);
    backend_.rmsnorm_backward(active(d_residual_), weights.ffn_norm.gradient, active(dz_), active(d_norm_),
                              active(layer.residual_ffn), active(layer.ffn_rstd), weights.ffn_norm.master,
                              weights.attention_output.compute.row_scale(), true, accumulate, workspace_);
}

void Transformer::backward_attention(LayerWeights& weights, LayerActivations& layer, const Tensor& next_scale,
                                     bool accumulate) {
    const Tensor log_sum_exp(layer.log_sum_exp.data, DType::float32,
                             {shape_.batch, shape_.heads, shape_.sequence});
    backend_.matmul_weight_gradient(weights.attention_output.gradient, active(dz_), active(layer.attention),
                                    accumulate);
    backend_.matmul_input_gradient(active(d_attention_), active(dz_), weights.attention_output.compute);
    backend_.attention_backward(active(d_qkv_), active(d_attention_), active(layer.qkv),
                                active(layer.attention), log_sum_exp, shape_, workspace_);
    backend_.rope_backward(active(d_qkv_), cosines_, sines_, weights.qkv.compute.row_scale(), shape_);
    backend_.matmul_weight_gradient(weights.qkv.gradient, active(d_qkv_), active(layer.attention_norm),
                                    accumulate);
    backend_.matmul_input_gradient(active(d_norm_), active(d_qkv_), weights.qkv.compute);
    backend_.rmsnorm_backward(active(d_residual_), weights.attention_norm.gradient, active(dz_),
                              active(d_norm_), active(layer.residual_attention), active(layer.attention_rstd),
                              weights.attention_norm.master, next_scale, true, accumulate, workspace_);
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
        backend_.sum(loss_total_, active(losses_), accumulate);
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

double Transformer::evaluate(const int32_t* inputs, const int32_t* targets, int64_t sequences) {
    set_sequences(sequences, config_.sequence_length);
    upload_tokens(inputs, targets);
    forward();
    forward_losses();
    backend_.sum(loss_total_, active(losses_), false);
    loss_terms_ = shape_.rows();
    return loss();
}

void Transformer::read_logits(int64_t first, int64_t count, float* logits) {
    const Tensor chunk = logits_.rows(0, count);
    backend_.matmul_forward(chunk, final_norm_.rows(first, count), parameters_.embedding.compute);
    backend_.copy_to_host(logits, chunk.data, chunk.bytes());
    const Tensor row_scale = parameters_.embedding.compute.row_scale();
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
