// Sizes of the model: a Llama-2-like decoder (pre-norm RMSNorm, rotary positions, causal attention with
// grouped key/value heads, SwiGLU), how a size such as "396M" becomes a shape, and what that shape costs. Models that
// are trained from the beginning tie the embedding to the output head and have no biases; imported ones may differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace train_qat {

// Llama 3's stretch of the rotary positions beyond the length that a model was trained on (arXiv 2407.21783, as
// transformers' "llama3" computes it): frequencies with wave lengths above original_positions / low_frequency_factor are
// divided by `factor`, those below original_positions / high_frequency_factor stay, and those between are blended.
struct RopeScaling {
    double factor = 1;
    double low_frequency_factor = 1, high_frequency_factor = 4;
    int64_t original_positions = 0;  // 0: no scaling
    bool operator==(const RopeScaling&) const = default;
};

struct ModelConfig {
    std::string name;                  // the size as asked for, or the rounded parameter count
    int64_t requested_parameters = 0;  // what the size asked for; 0 when the shape was given without a size
    int64_t layers = 0;                // L
    int64_t width = 0;                 // C
    int64_t heads = 0;                 // H
    int64_t kv_heads = 0;              // KV, divides H
    int64_t head_dim = 0;              // d, even (rotary pairs); C / H unless it is given
    int64_t ffn = 0;                   // F, hidden width of SwiGLU
    int64_t vocabulary = 0;            // V
    int64_t sequence_length = 0;       // T
    bool tied = true;                  // the embedding is also the output head
    bool attention_biases = false;     // on queries, keys and values (Qwen2)
    bool head_norms = false;           // an RMSNorm of each query and key head before it turns (Qwen3)
    double rope_theta = 10000.0;
    RopeScaling rope_scaling;
    double norm_epsilon = 1e-5;
};

// Values that the user fixed (-layers, -width, -heads, -kv_heads, -ffn, -head_dim, -untied); the others are solved.
struct ConfigOverrides {
    std::optional<int64_t> layers = {}, width = {}, heads = {}, kv_heads = {}, ffn = {}, head_dim = {};
    bool untied = false;
};

inline constexpr int64_t maximum_head_dim = 256;
// A solved shape is within this of its request wherever vocabulary and fixed values permit.
inline constexpr double size_tolerance = 0.03;

// Embedding and head + L * (q, k, v, o, gate, up, down, two norms, and biases and head norms where there are some) +
// final norm.
int64_t parameter_count(const ModelConfig& config);

// Of the embedding and the output head: V*C where they are tied, else twice that.
int64_t embedding_parameter_count(const ModelConfig& config);

// Of all that no grid rounds: norms and biases.
int64_t vector_parameter_count(const ModelConfig& config);

// The block linears alone, the weights that quantization-aware training quantizes:
// L * (H*d*C + 2*KV*d*C + C*H*d + 3*F*C).
int64_t linear_parameter_count(const ModelConfig& config);

// Cosines and sines of the rotary positions' angles t * f_i, both (T, d/2) float32, with the frequencies
// f_i = rope_theta^(-2i/d), stretched where rope_scaling asks for it.
void rotations(const ModelConfig& config, float* cosines, float* sines);

// Floating-point operations of one token, after PaLM (arXiv 2204.02311, appendix B), a multiply-add counting
// as two: forward 2*(linears + V*C) + 4*L*H*d*(T/2), training three times that (the backward pass computes a
// gradient of the input and one of the weight). PaLM counts T keys for a query; a causal mask leaves T/2 of
// them on average, hence the half. Norms, rotations and softmax are not counted.
double forward_flops_per_token(const ModelConfig& config);
double training_flops_per_token(const ModelConfig& config);

// Turns a size and the user's fixed values into a complete, validated shape.
//
// size_text: total parameters, such as "396M", "1.5M", "120000"; "" when the shape is given by -layers and
// -width instead (heads, kv_heads and ffn are then solved by the rule below unless they are fixed).
//
// Presets: 86M, 396M, 759M and 2.2B are hand-chosen shapes, within 1% of their names at vocabulary 32,000.
// The size always means parameters: where another vocabulary or -kv_heads moves a preset by more than 3%, or
// where -layers, -width or -ffn is fixed, the rule takes over.
//
// Rule: all shapes from a grid (width a multiple of 32 below 256, of 64 below 1,536, of 128 above; 1 to 256
// layers; ffn 1.5 to 4 times the width and a multiple of 128, or of 32 below width 256) are scored and the
// lowest score wins; the first one found (smallest width, then fewest layers) on a tie. The score adds
//   100 * |ln(parameters / requested)|      1% off costs 1 point; all shapes within 3% go before all others
//   2 * |log2(width / layers / aspect)|     aspect 64 up to width 512, rising to 128 at width 4,096
//   4 * |log2(ffn / width / (8/3))|         8/3 gives SwiGLU the cost of a plain 4x feed-forward block
//   2 for a width (from 512 on) and 1 for an ffn not a multiple of 256: GGUF K-quants need such rows
//   4 for a single layer
// Heads: d = 32 below width 256, 64 below 1,536, 128 above; for an odd -width the largest even divisor of it
// that is no larger; heads = width / d. With -head_dim that is d, and -heads may be any number. kv_heads = heads unless
// fixed.
//
// Throws std::runtime_error with one line that names the flag: unreadable size, a size that is too small for
// the vocabulary or too large, values that do not fit together.
ModelConfig resolve_config(const std::string& size_text, int64_t vocabulary, int64_t sequence_length,
                           const ConfigOverrides& overrides = {});

// Throws std::runtime_error (one line naming the flag) unless every size is positive, head_dim is even and at most 256,
// and kv_heads divides heads.
void validate_config(const ModelConfig& config);

// Several lines for a person: the resolved shape, exact parameter counts and the distance to the request.
std::string describe(const ModelConfig& config);

}  // namespace train_qat
