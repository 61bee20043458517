#include "model/job/options.h"

#include <algorithm>
#include <cctype>
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "model/job/options_check.h"
#include "model/plan/model_bytes.h"
#include "model/quantizer.h"
#include "model/units.h"

namespace train_qat {

namespace {

// CLI11 reads names of one letter with one dash and without `=`, and all others with two dashes; llm.c has
// one dash everywhere.
std::vector<std::string> as_cli11_reads(const std::vector<std::string>& arguments) {
    std::vector<std::string> result;
    for (const std::string& argument : arguments) {
        const std::optional<std::string> name = flag_name(argument);
        if (!name) {
            result.push_back(argument);
            continue;
        }
        const std::string rest = argument.substr(argument.find_first_not_of('-') + name->size());
        result.push_back((name->size() == 1 ? "-" : "--") + *name + (name->size() == 1 ? "" : rest));
        if (name->size() == 1 && !rest.empty()) result.push_back(rest.substr(1));
    }
    return result;
}

// Flags whose text needs reading by the planner's own functions.
struct Texts {
    std::string bits = "4", tokens, schedule = "wsd", cooldown = "auto", warmup, qat_warmup,
                qat_fraction = "auto", memory, flops, exports;
};

void add_model_flags(CLI::App& app, Options& o) {
    const char* group = "Model";
    app.add_option(
           "-n", o.size,
           "size in parameters: 86M, 396M, 759M, 2.2B, or any other, such as 1.5M; auto: the best by -law "
           "for -flops and -memory")
        ->group(group);
    app.add_option("--layers", o.shape.layers, "number of layers")->group(group);
    app.add_option("--width", o.shape.width, "width of the residual stream")->group(group);
    app.add_option("--heads", o.shape.heads, "attention heads")->group(group);
    app.add_option("--head_dim", o.shape.head_dim, "numbers of a head (default: width / heads)")
        ->group(group);
    app.add_option("--kv_heads", o.shape.kv_heads, "key/value heads (default: as many as heads)")
        ->group(group);
    app.add_option("--ffn", o.shape.ffn, "hidden width of the feed-forward block")->group(group);
    app.add_flag("--untied", o.shape.untied, "an output head of its own, instead of the embedding")
        ->group(group);
    app.add_option("--vocab", o.vocabulary, "vocabulary (default: that of the training data, else 32000)")
        ->group(group);
    app.add_option("--seq_len", o.sequence_length, "tokens of a sequence")
        ->group(group)
        ->capture_default_str();
    app.add_option("--init_from", o.initial_model,
                   "start from the weights of a Hugging Face folder (Llama, Qwen2, Qwen3), instead of a size")
        ->group(group);
}

void add_plan_flags(CLI::App& app, Options& o, Texts& t) {
    const char* group = "Quantization and plan";
    app.add_option(
           "-b", t.bits,
           "bits of a weight: 1, 1.58, 2, 3, 4, 5, 6, 8; 16 for no QAT; auto: the best by -law of those "
           "that fit -memory")
        ->group(group)
        ->capture_default_str();
    app.add_option("--group", o.group, "weights that share a scale: 32, 64, 128; 0 for a whole row")
        ->group(group)
        ->capture_default_str();
    app.add_option("--qat_frac", t.qat_fraction,
                   "fraction of the tokens to train quantization-aware, or auto (by -law, if given)")
        ->group(group)
        ->capture_default_str();
    app.add_option("--tokens", t.tokens, "tokens to train on, such as 8B (default: 20 per parameter)")
        ->group(group);
    app.add_option("--law", o.law_file,
                   "a fitted loss law (scripts/scaling_law.py): predicts losses, and decides for auto")
        ->group(group);
    app.add_option("--memory", t.memory,
                   "most bytes of the packed model: 500MB, 1.5GB; a given size and bits must fit")
        ->group(group);
    app.add_option("--flops", t.flops, "training budget such as 1e18, instead of -tokens; with -n auto")
        ->group(group);
    app.add_option("--steps", o.plan.steps, "optimizer steps, instead of -tokens")->group(group);
    app.add_option("--schedule", t.schedule, "wsd or cosine")->group(group)->capture_default_str();
    app.add_option("--cooldown", t.cooldown, "fused, classic or auto")->group(group)->capture_default_str();
    app.add_option("--cooldown_frac", o.plan.cooldown_fraction, "wsd: fraction of the steps that decay (0.2)")
        ->group(group);
    app.add_option("--warmup", t.warmup, "steps (200) or fraction of all steps (0.02)")->group(group);
    app.add_option("--lr", o.plan.learning_rate, "peak learning rate")->group(group)->capture_default_str();
    app.add_option("--final_lr_frac", o.plan.final_learning_rate_fraction, "last learning rate / peak")
        ->group(group)
        ->capture_default_str();
    app.add_option("--qat_lr", o.plan.qat_learning_rate, "classic: peak learning rate of QAT")->group(group);
    app.add_option("--qat_warmup", t.qat_warmup,
                   "classic: re-warmup, steps or fraction of the QAT steps (0.05)")
        ->group(group);
    app.add_flag("--plan", o.plan_only, "print the plan, the memory and the FLOPs, and exit")->group(group);
}

void add_data_flags(CLI::App& app, Options& o, Texts& t) {
    const char* group = "Data and output";
    app.add_option(
           "-i", o.data.training,
           "training shards: a path, a glob, or several with commas (default: with -j and -tokenizer what "
           "data/prepare.py prepared last)")
        ->group(group);
    app.add_option("-j", o.data.validation, "validation shards")->group(group);
    app.add_option("--tokenizer", o.data.tokenizer,
                   "SentencePiece model of the shards, for text of the model")
        ->group(group);
    app.add_option("-o", o.output_directory, "directory for checkpoints and metrics")
        ->group(group)
        ->capture_default_str();
    app.add_option("--val_every", o.validate_every, "steps between validations; 0: at the switch and the end")
        ->group(group)
        ->capture_default_str();
    app.add_option("--val_sequences", o.validation_sequences, "sequences of a validation")
        ->group(group)
        ->capture_default_str();
    app.add_option("--save_every", o.save_every, "steps between checkpoints; 0: at the end")
        ->group(group)
        ->capture_default_str();
    app.add_option("--keep", o.keep, "checkpoints to keep; 0: all")->group(group)->capture_default_str();
    app.add_flag("--eval_only", o.evaluate_only,
                 "measure the checkpoint -e: its loss on -j, answers to -hellaswag; and exit")
        ->group(group);
    app.add_option("-e", o.checkpoint,
                   "checkpoint for -eval_only and -sample: its directory, the -o of its run, or a Hugging "
                   "Face folder")
        ->group(group);
    app.add_option("--hellaswag", o.hellaswag,
                   "-eval_only: count right answers to these examples (data/prepare_hellaswag.py)")
        ->group(group);
    app.add_flag("--resume", o.resume, "go on from the latest checkpoint in -o")->group(group);
    app.add_option("--resume_from", o.resume_from,
                   "go on from this checkpoint in -o, of this step or path, instead of the latest")
        ->group(group);
    app.add_option("--from", o.from, "start from a checkpoint of another run that shares the first steps")
        ->group(group);
    app.add_option("--until", o.until, "stop after this step, with a checkpoint to go on from")->group(group);
    app.add_option("--print_every", o.print_every, "steps between console lines")
        ->group(group)
        ->capture_default_str();
    app.add_flag("--tensorboard", o.tensorboard,
                 "write the curves for TensorBoard too: tensorboard --logdir of -o")
        ->group(group);
    app.add_option("--export", t.exports,
                   "at the end write formats for other programs into -o: gguf, gguf-f32, hf, "
                   "compressed-tensors, several with commas (scripts/export.py)")
        ->group(group);
}

void add_sample_flags(CLI::App& app, Options& o) {
    const char* group = "Text of the model";
    app.add_option(
           "--sample", o.sample,
           "continue this text with the checkpoint -e, and exit; of a training run a number: -sample_tokens")
        ->group(group);
    app.add_option("--prompt", o.prompt, "begin of the sample of text at a run's end")->group(group);
    app.add_option("--sample_tokens", o.sample_tokens,
                   "tokens to add, 0: none; where the context is full, its last half is read again")
        ->group(group)
        ->capture_default_str();
    app.add_option("--temperature", o.temperature, "0: the likeliest token")
        ->group(group)
        ->capture_default_str();
    app.add_option("--top_k", o.top_k, "draw from this many likeliest tokens; 0: from all")
        ->group(group)
        ->capture_default_str();
    app.add_option("--top_p", o.top_p, "draw from the fewest likeliest tokens with this probability; 1: all")
        ->group(group)
        ->capture_default_str();
}

void add_run_flags(CLI::App& app, Options& o) {
    const char* group = "Optimizer and device";
    app.add_option("--batch", o.batch, "sequences of a micro-batch")->group(group)->capture_default_str();
    app.add_option("--grad_accum", o.gradient_accumulation, "micro-batches of an optimizer step")
        ->group(group)
        ->capture_default_str();
    app.add_option("--weight_decay", o.optimizer.weight_decay, "AdamW's, on matrices")
        ->group(group)
        ->capture_default_str();
    app.add_option("--beta1", o.optimizer.beta1, "AdamW's")->group(group)->capture_default_str();
    app.add_option("--beta2", o.optimizer.beta2, "AdamW's")->group(group)->capture_default_str();
    app.add_option("--eps", o.optimizer.epsilon, "AdamW's")->group(group)->capture_default_str();
    app.add_option("--clip", o.optimizer.clip_norm, "largest gradient norm; 0: no clipping")
        ->group(group)
        ->capture_default_str();
    app.add_option("--scale_lr", o.optimizer.scale_learning_rate_factor,
                   "relative learning rate of the scales / learning rate")
        ->group(group)
        ->capture_default_str();
    app.add_option("--seed", o.seed, "of weights, data order and sampling")
        ->group(group)
        ->capture_default_str();
    app.add_option("--device", o.device, "cuda, cpu or auto")->group(group)->capture_default_str();
    app.add_option("--dtype", o.dtype, "bf16, fp32, or auto: bf16 where the device is fast at it")
        ->group(group)
        ->capture_default_str();
    app.add_option(
           "--qat_gemm", o.qat_gemm,
           "CUDA matmuls of quantized weights: fused (packed codes), cublaslt, or auto: the faster one; "
           "hopper: fused for compute capability 9.0, so far run on an emulated card only")
        ->group(group)
        ->capture_default_str();
    app.add_option(
           "--gemm", o.gemm,
           "CUDA matmuls of plain matrices: cublaslt, hopper (H100 and H200; no card has run it yet), or "
           "auto: cublaslt, or our own where the program was built without it")
        ->group(group)
        ->capture_default_str();
    app.add_option(
           "--attention", o.attention,
           "CUDA attention: mma, hopper (H100 and H200, heads of 64 and 128; no card has run it yet), or "
           "auto: mma")
        ->group(group)
        ->capture_default_str();
    app.add_option("--master", o.master,
                   "float32 master weights: on, or off: bfloat16 weights, rounded stochastically (CUDA)")
        ->group(group)
        ->capture_default_str();
    app.add_option(
           "--logit_rows", o.logit_rows,
           "rows of logits to compute at a time: few take little memory, many are fast on a GPU; 0: what "
           "suits the device")
        ->group(group)
        ->capture_default_str();
    app.add_option("--logits", o.logits,
                   "fp32, or bf16: rounded before the loss reads them, for a third of their memory")
        ->group(group)
        ->capture_default_str();
    app.add_option("--threads", o.threads, "CPU threads; 0: all")->group(group)->capture_default_str();
}

void add_rank_flags(CLI::App& app, Options& o) {
    const char* group = "Many ranks and sweeps (mpirun -np 4 train_qat ...)";
    app.add_option(
           "--total_batch", o.total_batch,
           "sequences of an optimizer step over all ranks; -batch is then the most, -grad_accum follows")
        ->group(group);
    app.add_option("--zero", o.zero, "1: ranks divide the optimizer's state, 0: each has all of it")
        ->group(group)
        ->capture_default_str();
    app.add_option("--rank_timeout", o.rank_timeout,
                   "seconds without an answer from another rank that end a job")
        ->group(group)
        ->capture_default_str();
    app.add_option("--rendezvous", o.rendezvous,
                   "a path on a shared file system where ranks meet that no MPI connects (srun)")
        ->group(group);
    app.add_option("--sweep", o.sweep,
                   "train every combination of a grid: a JSON file, see model/sweep/README.md")
        ->group(group);
    app.add_option("--sweep_ranks", o.sweep_ranks, "ranks that train one run of a sweep together")
        ->group(group)
        ->capture_default_str();
    app.add_flag("--retry_failed", o.retry_failed, "a continued sweep tries failed runs again")->group(group);
}

// "lr"
std::string name_of(const CLI::Option& option) {
    return (option.get_lnames().empty() ? option.get_snames() : option.get_lnames()).front();
}

std::vector<std::string> given_flags(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options())
        if (option->count() > 0) names.push_back(name_of(*option));
    return names;
}

// CLI11 takes nan and infinity, numbers that fit no float32, whole ones beyond 64 bits, and 010 for 8.
void check_numbers(const CLI::App& app) {
    for (const CLI::Option* option : app.get_options()) {
        const std::string type = option->get_type_name();
        if (option->count() == 0 || (type != "FLOAT" && type != "INT" && type != "UINT")) continue;
        const std::string& text = option->results().front();
        const std::string refusal = "-" + name_of(*option) + " " + text + ": must be ";
        if (type == "FLOAT") {
            const auto number = parse_number<double>(text);
            require(
                number && std::isfinite(*number) && std::abs(*number) <= std::numeric_limits<float>::max(),
                refusal + "a number from -3.4e38 to 3.4e38");
        } else if (type == "UINT") {
            require(parse_number<uint64_t>(text) == option->as<uint64_t>(),
                    refusal + "a whole number from 0 to " + std::to_string(UINT64_MAX));
        } else {
            require(parse_number<int64_t>(text) == option->as<int64_t>(),
                    refusal + "a whole number of at most 64 bits, in decimal digits");
        }
    }
}

void read_texts(const Texts& t, Options& o) {
    o.choose_size = o.size == "auto";
    if (o.choose_size) o.size.clear();
    o.choose_bits = t.bits == "auto";
    if (!o.choose_bits) {
        const auto bits = parse_number<double>(t.bits);
        require(bits.has_value(),
                "-b: cannot read '" + t.bits + "': give a number of bits such as 4, or auto");
        o.bits = *bits;
    }
    o.plan.bits = o.bits;
    if (!t.memory.empty()) o.memory = parse_bytes(t.memory, "-memory");
    if (!t.flops.empty()) {
        o.flops = parse_number<double>(t.flops);
        require(o.flops.has_value(), "-flops: cannot read '" + t.flops + "': give a number such as 1e18");
    }
    std::stringstream formats(t.exports);
    for (std::string format; std::getline(formats, format, ',');) o.exports.push_back(format);
    if (!t.tokens.empty()) o.plan.tokens = parse_count(t.tokens, "-tokens");
    o.plan.schedule = parse_schedule(t.schedule);
    o.plan.cooldown = parse_cooldown(t.cooldown);
    if (!t.warmup.empty()) o.plan.warmup = parse_steps_or_fraction(t.warmup, "-warmup");
    if (!t.qat_warmup.empty()) o.plan.qat_warmup = parse_steps_or_fraction(t.qat_warmup, "-qat_warmup");
    if (t.qat_fraction == "auto") return;
    o.plan.qat_fraction = parse_number<double>(t.qat_fraction);
    require(o.plan.qat_fraction.has_value(),
            "-qat_frac: cannot read '" + t.qat_fraction + "': give a number from 0 to 1, or auto");
}

// Of a run that trains, or is measured, -sample is how long its sample is: the flag's first meaning.
void read_sample(Options& o) {
    if (!o.sample || (!o.checkpoint.empty() && !o.evaluate_only)) return;
    const auto tokens = parse_number<int64_t>(*o.sample);
    if (!tokens) return;
    o.sample_tokens = *tokens;
    o.sample.reset();
}

}  // namespace

std::optional<std::string> flag_name(const std::string& argument) {
    const size_t begin = std::min(argument.find_first_not_of('-'), argument.size());
    const bool named = (begin == 1 || begin == 2) && begin < argument.size() &&
                       std::isalpha(static_cast<unsigned char>(argument[begin]));
    if (!named) return std::nullopt;
    return argument.substr(begin, argument.find('=') - begin);
}

std::optional<Options> parse_command_line(const std::vector<std::string>& arguments, std::ostream& help) {
    Options options;
    Texts texts;
    CLI::App app(
        "train_qat: trains low-bit language models for the least compute.\n"
        "A full-precision step range, then a quantization-aware one; the planner splits the tokens.",
        "train_qat");
    app.get_formatter()->column_width(26);
    add_model_flags(app, options);
    add_plan_flags(app, options, texts);
    add_data_flags(app, options, texts);
    add_sample_flags(app, options);
    add_run_flags(app, options);
    add_rank_flags(app, options);
    check_no_value_is_empty(arguments);
    std::vector<std::string> reversed = as_cli11_reads(arguments);
    std::reverse(reversed.begin(), reversed.end());
    try {
        app.parse(reversed);
    } catch (const CLI::CallForHelp&) {
        help << app.help();
        return std::nullopt;
    } catch (const CLI::ParseError& error) {
        // CLI11 puts several sentences on several lines.
        throw std::runtime_error(
            one_line(error.what()) +
            " (train_qat -h lists all options; patterns need quotes: -i 'data/x_*.bin')");
    }
    check_numbers(app);
    read_texts(texts, options);
    options.bits_given = app.count("-b") > 0;
    read_sample(options);
    if (!options.resume_from.empty()) options.resume = true;
    check_mode(options, given_flags(app));
    check_options(options);
    return options;
}

}  // namespace train_qat
