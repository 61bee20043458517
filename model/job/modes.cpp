// Which flags a mode reads: one table. A flag that is not in a mode's list is refused there, new ones included.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string_view>

#include "model/import/hugging_face_config.h"
#include "model/job/options_check.h"

namespace train_qat {

namespace {

using Flags = std::vector<std::string_view>;

Flags operator+(Flags flags, const Flags& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
}

// All modes: where they compute, and how ranks meet. A device reads of it what it has.
const Flags machine = {"device", "dtype", "threads", "rank_timeout", "rendezvous"};
// Whatever multiplies whole batches.
const Flags kernels = {"qat_gemm", "gemm", "attention", "logit_rows", "logits"};
const Flags model = {"n",   "layers", "width", "heads",   "head_dim", "kv_heads",
                     "ffn", "untied", "vocab", "seq_len", "init_from"};
const Flags plan = {"b",      "group",         "qat_frac", "tokens",       "law",    "memory",
                    "flops",  "steps",         "schedule", "cooldown",     "warmup", "cooldown_frac",
                    "lr",     "final_lr_frac", "qat_lr",   "qat_warmup",   "plan",   "batch",
                    "master", "grad_accum",    "zero",     "weight_decay", "beta1",  "beta2",
                    "eps",    "clip",          "scale_lr", "total_batch",  "seed"};
const Flags run = {"i",          "j",    "o",           "val_every",  "val_sequences",
                   "save_every", "keep", "print_every", "tensorboard"};
const Flags sampling = {"tokenizer", "sample", "sample_tokens", "temperature", "top_k", "top_p"};
const Flags training = machine + kernels + model + plan + run + sampling + Flags{"prompt"};
const Flags one_run = {"resume", "resume_from", "from", "until", "export"};
const Flags evaluation =
    machine + kernels + Flags{"eval_only", "e", "j", "val_sequences", "tokenizer", "hellaswag", "batch"};
const Flags text = machine + sampling + Flags{"e", "seed"};
// What a folder leaves open, and a run's checkpoint says itself.
const Flags of_folder = {"b", "group", "seq_len"};

struct Mode {
    const char *name, *of;
    Flags flags;
};
enum ModeNumber : uint8_t { train, sweep, evaluate_run, evaluate_folder, sample_run, sample_folder };
// -plan shows what all the rest of a command line would do: it is no mode of its own.
const Mode modes[] = {{"training", "", training + one_run},
                      {"-sweep", "", training + Flags{"sweep", "sweep_ranks", "retry_failed"}},
                      {"-eval_only", " of a run", evaluation},
                      {"-eval_only", " of a Hugging Face folder", evaluation + of_folder},
                      {"-sample TEXT", " of a run", text},
                      {"-sample TEXT", " of a Hugging Face folder", text + of_folder}};

// What someone who gives the flag there may want.
const std::map<std::string_view, const char*> other_ways = {
    {"e", "-from and -resume train further"},
    {"init_from", "-eval_only and -sample take a Hugging Face folder with -e"},
    {"export", "export checkpoints and runs of a sweep with scripts/export.py"},
    {"resume", "a sweep goes on by itself"},
    {"i", "-j names the shards to measure"},
    {"b", "the checkpoint has its own"},
    {"group", "the checkpoint has its own"},
    {"seq_len", "the checkpoint has its own"},
};

bool reads(const Mode& mode, std::string_view flag) {
    return std::find(mode.flags.begin(), mode.flags.end(), flag) != mode.flags.end();
}

const Mode& mode_of(const Options& options) {
    if (options.evaluate_only || options.sample) {
        // What is not there is refused as such, when it is opened.
        std::error_code ignored;
        const bool missing = !std::filesystem::exists(options.checkpoint, ignored);
        const int folder = missing || is_hugging_face_folder(options.checkpoint) ? 1 : 0;
        return modes[(options.sample && !options.evaluate_only ? sample_run : evaluate_run) + folder];
    }
    return modes[options.sweep.empty() ? train : sweep];
}

// "training and -sweep": the modes that read it.
std::string readers_of(std::string_view flag) {
    std::vector<std::string> names;
    for (const Mode& mode : modes)
        if (reads(mode, flag) && (names.empty() || names.back() != mode.name)) names.emplace_back(mode.name);
    std::string text;
    for (size_t i = 0; i < names.size(); ++i)
        text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
    return text;
}

}  // namespace

void check_mode(const Options& options, const std::vector<std::string>& given) {
    const Mode& mode = mode_of(options);
    for (const std::string& flag : given) {
        if (reads(mode, flag)) continue;
        const auto way = other_ways.find(flag);
        throw std::runtime_error("-" + flag + ": is for " + readers_of(flag) + ", not for " + mode.name +
                                 mode.of + "; leave it out" +
                                 (way == other_ways.end() ? "" : std::string(" (") + way->second + ")"));
    }
}

}  // namespace train_qat
