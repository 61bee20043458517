#include "model/generation/decoder.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace train_qat {

namespace {

// Of a prompt, at a time: enough for weights to be unpacked once for several tokens, few enough to take little memory.
constexpr int64_t most_rows = 64;

}  // namespace

Decoder::Decoder(Transformer& model)
    : backend_(model.backend()),
      config_(model.config()),
      weights_(backend_, config_, model.parameters()),
      caches_(static_cast<size_t>(config_.layers)) {
    const int64_t T = config_.sequence_length, D = config_.head_dim, G = config_.kv_heads;
    for (Cache& cache : caches_) {
        arena_.place("keys and values", cache.keys, DType::float32, {G, D, T});
        arena_.place("keys and values", cache.values, DType::float32, {G, T, D});
    }
    place_activations();
    arena_.allocate(backend_);
    fill_rotations(backend_, config_, cosines_, sines_);
}

void Decoder::place_activations() {
    const int64_t T = config_.sequence_length, H = config_.heads, G = config_.kv_heads, D = config_.head_dim;
    const int64_t M = std::min(most_rows, T), C = config_.width, F = config_.ffn;
    const auto place = [this](Tensor& view, std::initializer_list<int64_t> shape) {
        arena_.place("activations", view, DType::float32, shape);
    };
    place(cosines_, {T, D / 2});
    place(sines_, {T, D / 2});
    arena_.place("activations", tokens_, DType::int32, {M});
    place(residual_, {M, C});
    place(normed_, {M, C});
    place(rstd_, {M});
    place(branch_, {M, C});
    place(qkv_, {M, (H + 2 * G) * D});
    if (config_.head_norms) {
        place(normed_qkv_, {M, (H + 2 * G) * D});
        place(head_rstd_, {M, H + G});
    }
    place(attention_, {M, H * D});
    place(gate_up_, {M, 2 * F});
    place(hidden_, {M, F});
    place(logits_, {1, config_.vocabulary});
}

int64_t Decoder::cache_bytes(int64_t position) const {
    return 2 * config_.layers * config_.kv_heads * config_.head_dim * (position + 1) *
           size_of(DType::float32);
}

void Decoder::read(std::span<const int32_t> tokens, std::span<float> logits) {
    const auto count = static_cast<int64_t>(tokens.size());
    if (count < 1 || position_ + count > capacity())
        throw std::logic_error("Decoder: no tokens, or more than there is room for");
    if (static_cast<int64_t>(logits.size()) != config_.vocabulary)
        throw std::logic_error("Decoder: logits are as many as the vocabulary");
    int64_t rows = 0;
    for (int64_t first = 0; first < count; first += rows) {
        rows = std::min(most_rows, count - first);
        read_piece(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)));
    }
    backend_.packed_matmul_forward(
        {.y = logits_, .x = normed_.rows(rows - 1, 1), .weight = weights_.output_head()});
    backend_.copy_to_host(logits.data(), logits_.data, logits_.bytes());
}

void Decoder::read_piece(std::span<const int32_t> tokens) {
    const auto rows = static_cast<int64_t>(tokens.size());
    shape_ = {1, rows, config_.heads, config_.kv_heads, config_.head_dim};
    backend_.copy_to_device(tokens_.data, tokens.data(), rows * size_of(DType::int32));
    backend_.packed_embedding_forward(
        {.y = active(residual_), .tokens = active(tokens_), .weight = weights_.embedding()});
    for (size_t l = 0; l < caches_.size(); ++l) layer(weights_.layers()[l], caches_[l], l == 0);
    norm(active(normed_), weights_.final_norm(), false);
    position_ += rows;
}

// The stream first takes up what the block before has computed; before the first layer there is none.
void Decoder::norm(const Tensor& y, const Tensor& weight, bool first) {
    backend_.residual_rmsnorm_forward({.residual_out = first ? Tensor() : active(residual_),
                                       .y = y,
                                       .rstd = active(rstd_),
                                       .residual_in = active(residual_),
                                       .branch = first ? Tensor() : active(branch_),
                                       .weight = weight,
                                       .epsilon = static_cast<float>(config_.norm_epsilon)});
}

void Decoder::layer(const PackedLayer& weights, const Cache& cache, bool first) {
    norm(active(normed_), weights.attention_norm, first);
    attention(weights, cache);
    backend_.packed_matmul_forward(
        {.y = active(branch_), .x = active(attention_), .weight = weights.attention_output});
    norm(active(normed_), weights.ffn_norm, false);
    backend_.packed_matmul_forward({.y = active(gate_up_), .x = active(normed_), .weight = weights.gate_up});
    backend_.swiglu_forward({.y = active(hidden_), .gate_up = active(gate_up_)});
    backend_.packed_matmul_forward({.y = active(branch_), .x = active(hidden_), .weight = weights.down});
}

// Queries, keys and values, with all that a model may do to them, and attention to the cached positions.
void Decoder::attention(const PackedLayer& weights, const Cache& cache) {
    Tensor qkv = active(qkv_);
    backend_.packed_matmul_forward({.y = qkv, .x = active(normed_), .weight = weights.qkv});
    if (config_.attention_biases) backend_.bias_forward({.z = qkv, .bias = weights.qkv_bias});
    if (config_.head_norms) {
        backend_.head_norm_forward({.y = active(normed_qkv_),
                                    .rstd = active(head_rstd_),
                                    .x = qkv,
                                    .query_weight = weights.query_norm,
                                    .key_weight = weights.key_norm,
                                    .epsilon = static_cast<float>(config_.norm_epsilon),
                                    .shape = shape_});
        qkv = active(normed_qkv_);
    }
    backend_.rope_forward({.qkv = qkv,
                           .cosines = cosines_.rows(position_, shape_.sequence),
                           .sines = sines_.rows(position_, shape_.sequence),
                           .shape = shape_});
    backend_.cached_attention_forward({.y = active(attention_),
                                       .keys = cache.keys,
                                       .values = cache.values,
                                       .qkv = qkv,
                                       .position = position_,
                                       .shape = shape_});
}

}  // namespace train_qat
