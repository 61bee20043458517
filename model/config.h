// Sizes of the model: a Llama-2-like decoder (pre-norm RMSNorm, rotary positions, causal attention with
// grouped key/value heads, SwiGLU, no biases, embedding tied to the output head), how a size such as "396M"
// becomes a shape, and what that shape costs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace train_qat {

struct ModelConfig {
    std::string name;                  // the size as asked for, or the rounded parameter count
    int64_t requested_parameters = 0;  // what the size asked for; 0 when the shape was given without a size
    int64_t layers = 0;                // L
    int64_t width = 0;                 // C
    int64_t heads = 0;                 // H
    int64_t kv_heads = 0;              // KV, divides H
    int64_t head_dim = 0;              // d = C / H, even (rotary pairs)
    int64_t ffn = 0;                   // F, hidden width of SwiGLU
    int64_t vocabulary = 0;            // V
    int64_t sequence_length = 0;       // T
    float rope_theta = 10000.0f;
    float norm_epsilon = 1e-5f;
};

// Values that the user fixed (-layers, -width, -heads, -kv_heads, -ffn); the others are solved.
struct ConfigOverrides {
    std::optional<int64_t> layers, width, heads, kv_heads, ffn;
};

inline constexpr int64_t maximum_head_dim = 256;
// A solved shape is within this of its request wherever vocabulary and fixed values permit.
inline constexpr double size_tolerance = 0.03;

// V*C (tied: counted once) + L * (q, k, v, o, gate, up, down, two norms) + final norm.
int64_t parameter_count(const ModelConfig& config);

// V*C: the tied embedding, which is also the output head.
int64_t embedding_parameter_count(const ModelConfig& config);

// The block linears alone, the weights that quantization-aware training quantizes:
// L * (H*d*C + 2*KV*d*C + C*H*d + 3*F*C).
int64_t linear_parameter_count(const ModelConfig& config);

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
// that is no larger. kv_heads = heads unless fixed.
//
// Throws std::runtime_error with one line that names the flag: unreadable size, a size that is too small for
// the vocabulary or too large, values that do not fit together.
ModelConfig resolve_config(const std::string& size_text, int64_t vocabulary, int64_t sequence_length,
                           const ConfigOverrides& overrides = {});

// Throws std::runtime_error (one line naming the flag) unless every size is positive, width = heads *
// head_dim, head_dim is even and at most 256, and kv_heads divides heads.
void validate_config(const ModelConfig& config);

// Several lines for a person: the resolved shape, exact parameter counts and the distance to the request.
std::string describe(const ModelConfig& config);

}  // namespace train_qat
