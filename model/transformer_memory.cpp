// Where the transformer's activations lie, how much memory that takes, and what would fit.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "model/units.h"

namespace train_qat {

namespace {

// Steps with fewer rows of logits at a time are slow.
constexpr int64_t fewest_advised_logit_rows = 128;

std::string gibibytes(int64_t bytes) {
    const bool large = bytes >= int64_t{1} << 30;
    return formatted("%.2f %s", static_cast<double>(bytes) / (large ? 1 << 30 : 1 << 20),
                     large ? "GiB" : "MiB");
}

}  // namespace

int64_t logit_chunk_rows(const Backend& backend, const ModelConfig& config, int64_t batch,
                         const LogitOptions& asked) {
    if (asked.rows < 0)
        throw std::logic_error("logit_chunk_rows: asked for " + std::to_string(asked.rows) + " rows");
    const int64_t rows = batch * config.sequence_length;
    return asked.rows > 0 ? std::min(asked.rows, rows)
                          : backend.preferred_logit_rows(rows, config.vocabulary, asked.type);
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
        if (backend_.wants_attention_remainder())
            arena.place("what rounding took from attention's outputs", layer.attention_rest, compute_type_,
                        {rows, head_columns});
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
    const std::string chunk =
        format_exact(chunk_rows_) + (chunk_rows_ == 1 ? " row" : " rows") + " of logits and their gradient";
    arena.place(chunk, logits_, logit_options_.type, {chunk_rows_, config_.vocabulary});
    if (logit_options_.type != compute_type_)
        arena.place(chunk, d_logits_, compute_type_, {chunk_rows_, config_.vocabulary});
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
    const auto needed_with = [this](int64_t batch, int64_t logit_rows) {
        return Transformer(backend_, config_, quantization_, compute_type_, batch, parameters_.shard(),
                           {logit_rows, logit_options_.type})
            .memory_bytes();
    };
    const auto needed = [&](int64_t batch) { return needed_with(batch, logit_options_.rows); };
    // Chunks of any size give the same step.
    for (int64_t rows = chunk_rows_ / 2; rows >= fewest_advised_logit_rows; rows /= 2)
        if (needed_with(batch_, rows) <= bytes)
            return "-logit_rows " + std::to_string(rows) + " would fit (" +
                   gibibytes(needed_with(batch_, rows)) + ")";
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

}  // namespace train_qat
