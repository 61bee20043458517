// Where the transformer's activations lie, how much memory that takes, and what would fit.
#include <algorithm>
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

void Transformer::place_layer(LayerActivations& layer) {
    const int64_t rows = shape_.rows(), width = config_.width;
    const int64_t head_columns = config_.heads * config_.head_dim;
    const char* const saved =
        use_ == ModelUse::training ? "activations kept for the backward pass" : "activations of a layer";
    const auto place = [&](Tensor& view, DType dtype, std::initializer_list<int64_t> shape) {
        activation_arena_.place(saved, view, dtype, shape);
    };
    place(layer.residual_attention, DType::float32, {rows, width});
    place(layer.attention_norm, compute_type_, {rows, width});
    place(layer.attention_rstd, DType::float32, {rows});
    if (config_.head_norms) {
        place(layer.qkv_before_norms, compute_type_, {rows, shape_.qkv_columns()});
        place(layer.head_rstd, DType::float32, {rows, shape_.normed_heads()});
    }
    place(layer.qkv, compute_type_, {rows, shape_.qkv_columns()});
    place(layer.attention, compute_type_, {rows, head_columns});
    if (backend_.wants_attention_remainder())
        activation_arena_.place("what rounding took from attention's outputs", layer.attention_rest,
                                compute_type_, {rows, head_columns});
    place(layer.log_sum_exp, DType::float32, {rows * config_.heads});
    place(layer.residual_ffn, DType::float32, {rows, width});
    place(layer.ffn_norm, compute_type_, {rows, width});
    place(layer.ffn_rstd, DType::float32, {rows});
    place(layer.gate_up, compute_type_, {rows, 2 * config_.ffn});
    place(layer.hidden, compute_type_, {rows, config_.ffn});
}

void Transformer::place_activations() {
    const int64_t rows = batch_ * config_.sequence_length, width = config_.width;
    set_sequences(batch_, config_.sequence_length);
    const bool training = use_ == ModelUse::training;
    for (size_t l = 0; l < (training ? layers_.size() : 1); ++l) place_layer(layers_[l]);
    Arena& arena = activation_arena_;
    const char* const passing =
        training ? "activations and gradients in passing" : "activations between layers";
    const auto place = [&](Tensor& view, DType dtype, std::initializer_list<int64_t> shape) {
        arena.place(passing, view, dtype, shape);
    };
    place(final_residual_, DType::float32, {rows, width});
    place(final_norm_, compute_type_, {rows, width});
    place(final_rstd_, DType::float32, {rows});
    place(cosines_, DType::float32, {config_.sequence_length, config_.head_dim / 2});
    place(sines_, DType::float32, {config_.sequence_length, config_.head_dim / 2});
    place(tokens_, DType::int32, {rows});
    place(targets_, DType::int32, {rows});
    place(losses_, DType::float32, {rows});
    place(loss_total_, DType::float32, {1});
    place(branch_, compute_type_, {rows, width});
    const std::string chunk = format_exact(chunk_rows_) + (chunk_rows_ == 1 ? " row" : " rows") +
                              " of logits" + (training ? " and their gradient" : "");
    arena.place(chunk, logits_, logit_options_.type, {chunk_rows_, config_.vocabulary});
    if (training && logit_options_.type != compute_type_)
        arena.place(chunk, d_logits_, compute_type_, {chunk_rows_, config_.vocabulary});
    if (training) place_gradients();
}

void Transformer::place_gradients() {
    const int64_t rows = shape_.rows(), width = config_.width;
    const auto place = [&](Tensor& view, DType dtype, int64_t columns) {
        activation_arena_.place("activations and gradients in passing", view, dtype, {rows, columns});
    };
    place(d_residual_, DType::float32, width);
    place(dz_, compute_type_, width);
    place(d_norm_, compute_type_, width);
    place(d_hidden_, compute_type_, config_.ffn);
    place(d_attention_, compute_type_, config_.heads * config_.head_dim);
    place(d_qkv_, compute_type_, shape_.qkv_columns());
    int64_t workspace = std::max(backend_.rmsnorm_backward_workspace(rows, width),
                                 backend_.attention_backward_workspace(shape_));
    if (config_.attention_biases)
        workspace = std::max(workspace, backend_.bias_backward_workspace(rows, shape_.qkv_columns()));
    if (config_.head_norms) workspace = std::max(workspace, backend_.head_norm_backward_workspace(shape_));
    activation_arena_.place_bytes("workspace of operations", workspace_, workspace);
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
    if (use_ == ModelUse::inference) std::fill(layers_.begin() + 1, layers_.end(), layers_.front());
    parameters_.bind();
    fill_rotations(backend_, config_, cosines_, sines_);
}

std::string Transformer::what_would_fit(int64_t bytes) const {
    const auto needed_with = [this](int64_t batch, int64_t logit_rows) {
        return Transformer(backend_, config_, quantization_, compute_type_, batch, parameters_.shard(),
                           {logit_rows, logit_options_.type}, use_)
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

void fill_rotations(Backend& backend, const ModelConfig& config, const Tensor& cosines, const Tensor& sines) {
    std::vector<float> of_cosines(cosines.elements()), of_sines(sines.elements());
    rotations(config, of_cosines.data(), of_sines.data());
    backend.copy_to_device(cosines.data, of_cosines.data(), cosines.bytes());
    backend.copy_to_device(sines.data, of_sines.data(), sines.bytes());
}

}  // namespace train_qat
