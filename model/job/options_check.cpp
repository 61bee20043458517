#include "model/job/options_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "model/import/hugging_face_config.h"
#include "model/quantizer.h"

namespace train_qat {

namespace {

void check_values(const Options& o) {
    grid_of_bits(o.bits);
    require(o.group == 0 || o.group == 32 || o.group == 64 || o.group == 128,
            "-group: must be 0, 32, 64 or 128, is " + std::to_string(o.group));
    // The upper limits keep every product of sizes countable.
    require(o.batch >= 1 && o.batch <= 1'000'000, "-batch: must be from 1 to 1000000");
    require(o.gradient_accumulation >= 1 && o.gradient_accumulation <= 1'000'000,
            "-grad_accum: must be from 1 to 1000000");
    require(o.sequence_length >= 1 && o.sequence_length <= 1'000'000, "-seq_len: must be from 1 to 1000000");
    require(!o.vocabulary || (*o.vocabulary >= 2 && *o.vocabulary <= INT32_MAX),
            "-vocab: must be from 2 to " + std::to_string(INT32_MAX));
    require(o.logit_rows >= 0 && o.logit_rows <= 1'000'000,
            "-logit_rows: must be from 1 to 1000000, or 0 for what suits the device");
    // More than some threads a processor only wait for one another.
    const int64_t most_threads = std::max<int64_t>(64, 4 * int64_t{std::thread::hardware_concurrency()});
    require(o.threads >= 0 && o.threads <= most_threads,
            "-threads: must be from 0 (all) to " + std::to_string(most_threads) + " on this machine");
    require(o.print_every >= 1, "-print_every: must be at least 1");
    require(o.validate_every >= 0 && o.save_every >= 0 && o.keep >= 0 && o.sample_tokens >= 0,
            "-val_every, -save_every, -keep and -sample_tokens must not be negative");
    require(o.validation_sequences >= 1, "-val_sequences: must be at least 1");
    require(!o.total_batch || (*o.total_batch >= 1 && *o.total_batch <= 1'000'000'000),
            "-total_batch: must be from 1 to 1000000000");
    require(!o.total_batch || o.gradient_accumulation == 1,
            "-total_batch and -grad_accum: give one of them, not both");
    require(!o.until || *o.until >= 1, "-until: must be at least 1");
    require(o.zero == 0 || o.zero == 1, "-zero: must be 0 or 1, is " + std::to_string(o.zero));
    require(o.rank_timeout > 0, "-rank_timeout: must be positive");
    require(o.sweep_ranks >= 1, "-sweep_ranks: must be at least 1");
    require(!o.evaluate_only || !o.checkpoint.empty(), "-eval_only: name the checkpoint with -e");
    require(
        !o.sample || !o.checkpoint.empty(),
        "-sample: continues a text; name the checkpoint with -e (tokens of a run's sample: -sample_tokens)");
    require(!o.sample || !o.data.tokenizer.empty() || is_hugging_face_folder(o.checkpoint),
            "-sample: name the tokenizer of the model's shards with -tokenizer");
    const bool uses_checkpoint = o.evaluate_only || o.sample;
    require(!uses_checkpoint || !o.choose_bits, "-b auto: is for training; give a number of bits such as 4");
    require(!uses_checkpoint || o.group == 0 || (o.bits_given && o.bits < 16),
            "-group: divides rows of rounded weights; give fewer than 16 bits with -b, or leave -group out");
    require(o.temperature >= 0 && std::isfinite(o.temperature),
            "-temperature: must be 0 or a positive number");
    require(o.top_k >= 0, "-top_k: must not be negative");
    require(o.top_p > 0 && o.top_p <= 1, "-top_p: must be above 0 and at most 1");
    require(o.optimizer.beta1 >= 0 && o.optimizer.beta1 < 1, "-beta1: must be in [0, 1)");
    require(o.optimizer.beta2 >= 0 && o.optimizer.beta2 < 1, "-beta2: must be in [0, 1)");
    require(o.optimizer.epsilon > 0, "-eps: must be positive");
    require(o.optimizer.weight_decay >= 0, "-weight_decay: must not be negative");
    require(o.optimizer.clip_norm >= 0, "-clip: must not be negative");
    require(o.optimizer.scale_learning_rate_factor >= 0, "-scale_lr: must not be negative");
    require(o.device == "auto" || o.device == "cpu" || o.device == "cuda",
            "-device: must be auto, cpu or cuda, is '" + o.device + "'");
    require(o.dtype == "auto" || o.dtype == "bf16" || o.dtype == "fp32",
            "-dtype: must be auto, bf16 or fp32, is '" + o.dtype + "'");
    require(o.logits == "fp32" || o.logits == "bf16", "-logits: must be fp32 or bf16, is '" + o.logits + "'");
    require(o.logits == "fp32" || o.dtype != "fp32",
            "-logits bf16: -dtype fp32 keeps the logits' gradient in float32; leave one of them out");
    require(o.master == "on" || o.master == "off", "-master: must be on or off, is '" + o.master + "'");
    require(o.master == "on" || o.device != "cpu",
            "-master off: the CPU backend keeps float32 masters; leave it out, or use -device cuda");
    require(
        o.qat_gemm == "auto" || o.qat_gemm == "fused" || o.qat_gemm == "cublaslt" || o.qat_gemm == "hopper",
        "-qat_gemm: must be auto, fused, cublaslt or hopper, is '" + o.qat_gemm + "'");
    require(o.qat_gemm != "hopper" || o.device != "cpu",
            "-qat_gemm hopper: needs a card of compute capability 9.0; leave it out, or use -device cuda");
    require(o.gemm == "auto" || o.gemm == "cublaslt" || o.gemm == "hopper",
            "-gemm: must be auto, cublaslt or hopper, is '" + o.gemm + "'");
    require(o.gemm == "auto" || o.device != "cpu",
            "-gemm " + o.gemm + ": the CPU backend has its own kernels; leave it out, or use -device cuda");
    require(o.attention == "auto" || o.attention == "mma" || o.attention == "hopper",
            "-attention: must be auto, mma or hopper, is '" + o.attention + "'");
    require(o.attention != "hopper" || o.device != "cpu",
            "-attention hopper: the CPU backend has its own kernels; leave it out, or use -device cuda");
}

// Of -init_from: the folder says what the model is.
void check_initial_model(const Options& o) {
    if (o.initial_model.empty()) return;
    const std::pair<const char*, bool> flags[] = {
        {"-n", !o.size.empty() || o.choose_size},    {"-layers", o.shape.layers.has_value()},
        {"-width", o.shape.width.has_value()},       {"-heads", o.shape.heads.has_value()},
        {"-head_dim", o.shape.head_dim.has_value()}, {"-kv_heads", o.shape.kv_heads.has_value()},
        {"-ffn", o.shape.ffn.has_value()},           {"-untied", o.shape.untied},
        {"-vocab", o.vocabulary.has_value()}};
    for (const auto& [flag, given] : flags)
        require(!given, std::string(flag) + ": with -init_from the folder's config.json says it; leave " +
                            flag + " out");
    require(o.law_file.empty(),
            "-law: tells losses of models that begin with new weights; leave it out with -init_from");
    require(!o.choose_bits && !o.flops, std::string(o.choose_bits ? "-b auto" : "-flops") +
                                            ": needs a loss law, which tells losses of models that begin "
                                            "with new weights; with -init_from give " +
                                            (o.choose_bits ? "a number of bits" : "-tokens or -steps"));
}

void check_exports(const Options& o) {
    for (auto format = o.exports.begin(); format != o.exports.end(); ++format) {
        require(
            *format == "gguf" || *format == "gguf-f32" || *format == "hf" || *format == "compressed-tensors",
            "-export: must be gguf, gguf-f32, hf or compressed-tensors, or several with commas, is '" +
                *format + "'");
        require(std::find(o.exports.begin(), format, *format) == format,
                "-export: names " + *format + " twice");
    }
    require(o.exports.empty() || !o.until,
            "-export: is for the end of a run; with -until export with scripts/export.py");
}

// What asks for the law's choice, and what it needs.
void check_choices(const Options& o) {
    const bool chooses = o.choose_size || o.choose_bits;
    require(!chooses || !o.law_file.empty(),
            std::string(o.choose_size ? "-n" : "-b") +
                " auto: only a fitted loss law can choose; give one with -law");
    require(!o.flops || !o.law_file.empty(),
            "-flops: only a fitted loss law can divide a budget; give one with -law");
    require(!o.choose_size || o.flops, "-n auto: needs a budget; give one with -flops, such as 1e18");
    require(!o.flops || o.choose_size,
            "-flops: sets size and tokens together; give it with -n auto, or give -tokens");
    require(!o.flops || (!o.plan.tokens && !o.plan.steps),
            "-flops: sets the tokens; give -flops, -tokens or -steps, not several");
    require(!o.flops || (std::isfinite(*o.flops) && *o.flops > 0), "-flops: must be positive and finite");
}

}  // namespace

void require(bool condition, const std::string& message) {
    if (!condition) throw std::runtime_error(message);
}

void check_no_value_is_empty(const std::vector<std::string>& arguments) {
    for (size_t i = 0; i < arguments.size(); ++i) {
        const std::string& argument = arguments[i];
        const bool behind_flag = argument.empty() && i > 0;
        const auto flag = flag_name(behind_flag ? arguments[i - 1] : argument);
        if (!flag || *flag == "sample" || *flag == "prompt") continue;
        require(!behind_flag && argument.find('=') + 1 != argument.size(),
                "-" + *flag + ": its value is empty; give one, or leave -" + *flag + " out");
    }
}

void check_options(const Options& options) {
    check_values(options);
    check_initial_model(options);
    check_choices(options);
    check_exports(options);
}

}  // namespace train_qat
