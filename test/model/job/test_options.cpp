// The command line: spellings, defaults, and the flag that an error names.
#include "model/job/options.h"

#include <iostream>
#include <sstream>

#include "test/support/catch.h"
#include "test/support/command_line.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// What help prints.
std::string help(const std::string& flag) {
    std::ostringstream captured;
    std::streambuf* const console = std::cout.rdbuf(captured.rdbuf());
    const auto options = parse_command_line({flag});
    std::cout.rdbuf(console);
    CHECK_FALSE(options);
    return captured.str();
}

}  // namespace

TEST_CASE("defaults of the command line", "[options]") {
    const Options options = parse("");
    CHECK(options.size.empty());
    CHECK_FALSE(options.shape.layers);
    CHECK_FALSE(options.shape.width);
    CHECK_FALSE(options.shape.heads);
    CHECK_FALSE(options.shape.kv_heads);
    CHECK_FALSE(options.shape.ffn);
    CHECK_FALSE(options.vocabulary);
    CHECK(options.sequence_length == 256);
    CHECK(options.bits == 4);
    CHECK(options.plan.bits == 4);
    CHECK_FALSE(options.choose_bits);
    CHECK_FALSE(options.choose_size);
    CHECK(options.law_file.empty());
    CHECK_FALSE(options.memory);
    CHECK_FALSE(options.flops);
    CHECK(options.group == 0);
    CHECK_FALSE(options.plan.qat_fraction);
    CHECK_FALSE(options.plan.tokens);
    CHECK_FALSE(options.plan.steps);
    CHECK_FALSE(options.plan.warmup);
    CHECK_FALSE(options.plan.qat_warmup);
    CHECK_FALSE(options.plan.cooldown_fraction);
    CHECK_FALSE(options.plan.qat_learning_rate);
    CHECK(options.plan.schedule == Schedule::wsd);
    CHECK(options.plan.cooldown == Cooldown::automatic);
    CHECK(options.plan.learning_rate == 1e-3);
    CHECK(options.plan.final_learning_rate_fraction == 0);
    CHECK(options.data.training.empty());
    CHECK(options.data.validation.empty());
    CHECK(options.data.tokenizer.empty());
    CHECK(options.output_directory == "out");
    CHECK(options.batch == 8);
    CHECK(options.gradient_accumulation == 1);
    CHECK(options.device == "auto");
    CHECK(options.dtype == "auto");
    CHECK(options.threads == 0);
    CHECK(options.logit_rows == 0);
    CHECK(options.logits == "fp32");
    CHECK(options.seed == 1);
    CHECK(options.optimizer.beta1 == 0.9);
    CHECK(options.optimizer.beta2 == 0.95);
    CHECK(options.optimizer.epsilon == 1e-8);
    CHECK(options.optimizer.weight_decay == 0.1);
    CHECK(options.optimizer.clip_norm == 1);
    CHECK(options.optimizer.scale_learning_rate_factor == 1);
    CHECK(options.validate_every == 0);
    CHECK(options.validation_sequences == 160);
    CHECK(options.from.empty());
    CHECK_FALSE(options.until);
    CHECK_FALSE(options.total_batch);
    CHECK(options.zero == 1);
    CHECK(options.rank_timeout == 600);
    CHECK(options.rendezvous.empty());
    CHECK(options.sweep.empty());
    CHECK(options.sweep_ranks == 1);
    CHECK_FALSE(options.retry_failed);
    CHECK(options.save_every == 0);
    CHECK(options.keep == 2);
    CHECK(options.print_every == 1);
    CHECK_FALSE(options.tensorboard);
    CHECK_FALSE(options.resume);
    CHECK_FALSE(options.plan_only);
    CHECK(options.prompt.empty());
    CHECK(options.sample_tokens == 128);
    CHECK(options.temperature == 0.8);
    CHECK(options.top_k == 0);
    CHECK(options.top_p == 1);
    CHECK_FALSE(options.sample);
}

TEST_CASE("every flag reaches its option", "[options]") {
    const Options options = parse(
        "-n 1.5M -layers 3 -width 96 -heads 6 -kv_heads 2 -ffn 160 -vocab 999 -seq_len 77 -b 1.58 -group 64 "
        "-qat_frac 0.25 -tokens 8B -schedule cosine -cooldown classic -cooldown_frac 0.3 -warmup 200 -lr "
        "2e-4 "
        "-final_lr_frac 0.1 -qat_lr 3e-4 -qat_warmup 0.07 -plan -i train*.bin -j val*.bin -tokenizer x.model "
        "-o "
        "runs/a -val_every 5 -val_sequences 6 -save_every 7 -keep 8 -resume -print_every 9 -tensorboard "
        "-prompt Once "
        "-sample_tokens 10 "
        "-temperature 0.5 -top_k 40 -top_p 0.9 -batch 11 -grad_accum 12 -weight_decay 0.2 -beta1 0.8 -beta2 "
        "0.99 -eps 1e-6 -clip "
        "3 "
        "-from runs/b/step_00000003 -until 44 -zero 0 -rank_timeout 1.5 -rendezvous shared/meet "
        "-scale_lr 0.25 -seed 18446744073709551615 -device cpu -dtype bf16 -threads 4 "
        "-logit_rows 1536 -logits bf16");
    CHECK(options.size == "1.5M");
    CHECK(options.shape.layers == 3);
    CHECK(options.shape.width == 96);
    CHECK(options.shape.heads == 6);
    CHECK(options.shape.kv_heads == 2);
    CHECK(options.shape.ffn == 160);
    CHECK(options.vocabulary == 999);
    CHECK(options.sequence_length == 77);
    CHECK(options.bits == 1.58);
    CHECK(options.plan.bits == 1.58);
    CHECK(options.group == 64);
    CHECK(options.plan.qat_fraction == 0.25);
    CHECK(options.plan.tokens == 8'000'000'000);
    CHECK(options.plan.schedule == Schedule::cosine);
    CHECK(options.plan.cooldown == Cooldown::classic);
    CHECK(options.plan.cooldown_fraction == 0.3);
    CHECK(std::get<int64_t>(options.plan.warmup.value()) == 200);
    CHECK(std::get<double>(options.plan.qat_warmup.value()) == 0.07);
    CHECK(options.plan.learning_rate == 2e-4);
    CHECK(options.plan.final_learning_rate_fraction == 0.1);
    CHECK(options.plan.qat_learning_rate == 3e-4);
    CHECK(options.plan_only);
    CHECK(options.data.training == "train*.bin");
    CHECK(options.data.validation == "val*.bin");
    CHECK(options.data.tokenizer == "x.model");
    CHECK(options.output_directory == "runs/a");
    CHECK(options.validate_every == 5);
    CHECK(options.validation_sequences == 6);
    CHECK(options.from == "runs/b/step_00000003");
    CHECK(options.until == 44);
    CHECK(options.zero == 0);
    CHECK(options.rank_timeout == 1.5);
    CHECK(options.rendezvous == "shared/meet");
    CHECK(options.save_every == 7);
    CHECK(options.keep == 8);
    CHECK(options.resume);
    CHECK(options.print_every == 9);
    CHECK(options.tensorboard);
    CHECK(options.prompt == "Once");
    CHECK(options.sample_tokens == 10);
    CHECK(options.temperature == 0.5);
    CHECK(options.top_k == 40);
    CHECK(options.top_p == 0.9);
    CHECK(options.batch == 11);
    CHECK(options.gradient_accumulation == 12);
    CHECK(options.optimizer.weight_decay == 0.2);
    CHECK(options.optimizer.beta1 == 0.8);
    CHECK(options.optimizer.beta2 == 0.99);
    CHECK(options.optimizer.epsilon == 1e-6);
    CHECK(options.optimizer.clip_norm == 3);
    CHECK(options.optimizer.scale_learning_rate_factor == 0.25);
    CHECK(options.seed == UINT64_MAX);
    CHECK(options.device == "cpu");
    CHECK(options.dtype == "bf16");
    CHECK(options.threads == 4);
    CHECK(options.logit_rows == 1536);
    CHECK(options.logits == "bf16");
    CHECK(parse("-steps 12").plan.steps == 12);
    CHECK_FALSE(parse("-qat_frac auto").plan.qat_fraction);
}

TEST_CASE("one dash, two dashes and = are the same", "[options]") {
    for (const char* line :
         {"-qat_frac 0.25 -b 2 -o run -resume", "--qat_frac 0.25 --b 2 --o run --resume",
          "-qat_frac=0.25 -b=2 -o=run -resume", "--qat_frac=0.25 --b=2 --o=run --resume"}) {
        INFO(line);
        const Options options = parse(line);
        CHECK(options.plan.qat_fraction == 0.25);
        CHECK(options.bits == 2);
        CHECK(options.output_directory == "run");
        CHECK(options.resume);
    }
    CHECK(parse("-o=a=b").output_directory == "a=b");
    CHECK(parse("-prompt=-hello").prompt == "-hello");
    const auto spoken = parse_command_line({"-prompt", "Once upon a time", "-i", "a b,c"});
    CHECK(spoken->prompt == "Once upon a time");
    CHECK(spoken->data.training == "a b,c");
}

TEST_CASE("-sample is a text of a checkpoint, and how long the sample of a run is", "[options]") {
    const Options run = parse("-sample 0");
    CHECK(run.sample_tokens == 0);
    CHECK_FALSE(run.sample);
    CHECK(parse("-sample 1984 -e out -tokenizer x.model").sample == "1984");
}

TEST_CASE("negative numbers are values, not flags", "[options]") {
    // Read as numbers, then refused as such, by the flag's own check.
    CHECK(parse("-lr -1").plan.learning_rate == -1);
    CHECK(parse("-lr -1e-3").plan.learning_rate == -1e-3);
    CHECK(parse("-lr=-.5").plan.learning_rate == -0.5);
    CHECK(parse("-steps -5").plan.steps == -5);
    CHECK(parse("-qat_frac -0.25").plan.qat_fraction == -0.25);
    CHECK(mentions(parse_error("-batch -1"), {"-batch", "from 1"}));
    CHECK(mentions(parse_error("-keep -1"), {"-keep", "negative"}));
}

TEST_CASE("help lists the flags, and nothing else is done", "[options]") {
    for (const char* flag : {"-h", "--help", "-help"}) {
        const std::string text = help(flag);
        for (const char* listed : {"-n", "-b", "--qat_frac", "--tokens", "--law", "--memory", "--flops", "-i",
                                   "-o", "--resume", "--batch", "--dtype"})
            CHECK(text.find(listed) != std::string::npos);
    }
}

TEST_CASE("an error is one line that names the flag", "[options]") {
    const auto check = [](const std::string& line, std::initializer_list<std::string> parts) {
        INFO(line);
        CHECK(mentions(parse_error(line), parts));
    };
    // unreadable
    check("-nonsense 3", {"nonsense", "-h"});
    check("stray", {"stray", "-h"});
    check("-steps", {"steps"});
    check("-steps x", {"steps", "x"});
    check("-steps 3.5", {"steps", "3.5"});
    check("-steps 3 -steps 4", {"steps"});
    check("-lr abc", {"lr", "abc"});
    check("-tokens 8X", {"-tokens", "'8X'"});
    check("-tokens -8", {"-tokens", "'-8'"});
    check("-qat_frac x", {"-qat_frac", "'x'", "auto"});
    check("-qat_frac 0.5x", {"-qat_frac", "'0.5x'"});
    check("-qat_frac=auto2", {"-qat_frac", "'auto2'"});
    check("-schedule linear", {"-schedule", "linear", "wsd", "cosine"});
    check("-cooldown maybe", {"-cooldown", "maybe", "fused", "classic"});
    check("-warmup ten", {"-warmup", "'ten'"});
    check("-qat_warmup 1.5", {"-qat_warmup", "'1.5'"});
    // out of range
    check("-b 7", {"-b", "7", "1.58", "16"});
    check("-b nan", {"-b"});
    check("-group 33", {"-group", "33"});
    check("-group -32", {"-group"});
    check("-batch 0", {"-batch"});
    check("-batch 1000001", {"-batch", "1000000"});
    check("-grad_accum 0", {"-grad_accum"});
    check("-seq_len 0", {"-seq_len"});
    check("-seq_len 1000001", {"-seq_len"});
    check("-vocab 1", {"-vocab"});
    check("-vocab 2147483648", {"-vocab", "2147483647"});
    check("-threads -1", {"-threads"});
    check("-threads 1000000", {"-threads", "must be from 0 (all) to"});
    check("-logit_rows -1", {"-logit_rows", "1000000", "0"});
    check("-logit_rows 1000001", {"-logit_rows"});
    check("-logit_rows x", {"logit_rows", "x"});
    check("-logits float32", {"-logits:", "fp32 or bf16", "'float32'"});
    check("-logits bf16 -dtype fp32", {"-logits bf16:", "-dtype fp32"});
    check("-print_every 0", {"-print_every"});
    check("-val_every -1", {"-val_every"});
    check("-save_every -1", {"-save_every"});
    check("-sample_tokens -1", {"-sample_tokens"});
    check("-top_k -1", {"-top_k"});
    check("-top_p 0", {"-top_p"});
    check("-top_p 1.01", {"-top_p"});
    check("-sample -1", {"-sample_tokens"});
    check("-sample A -tokenizer x.model", {"-sample", "-e"});
    check("-sample A -e out", {"-sample", "-tokenizer"});
    check("-e out", {"-e", "-sample"});
    check("-sample A -e out -tokenizer x.model -plan", {"-sample", "-plan"});
    check("-val_sequences 0", {"-val_sequences"});
    check("-zero 2", {"-zero"});
    check("-rank_timeout 0", {"-rank_timeout"});
    check("-sweep_ranks 0", {"-sweep_ranks"});
    check("-until 0", {"-until"});
    check("-total_batch 0", {"-total_batch"});
    check("-total_batch 8 -grad_accum 2", {"-total_batch", "-grad_accum"});
    check("-sweep grid.json -resume", {"-sweep", "-resume"});
    for (const char* wrong : {"-1", "nan"}) {
        const std::string value = wrong;
        check("-temperature " + value, {"-temperature"});
        check("-beta1 " + value, {"-beta1"});
        check("-beta2 " + value, {"-beta2"});
        check("-eps " + value, {"-eps"});
        check("-weight_decay " + value, {"-weight_decay"});
        check("-clip " + value, {"-clip"});
        check("-scale_lr " + value, {"-scale_lr"});
    }
    check("-beta1 1", {"-beta1"});
    check("-beta2 1", {"-beta2"});
    check("-eps 0", {"-eps"});
    check("-device tpu", {"-device", "'tpu'"});
    check("-dtype fp8", {"-dtype", "'fp8'"});
}

TEST_CASE("an empty value is none", "[options]") {
    for (const char* flag :
         {"-n",      "-layers",     "-b",         "-tokens",      "-flops",     "-memory",
          "-warmup", "-qat_warmup", "-init_from", "-law",         "-i",         "-j",
          "-o",      "-e",          "-export",    "-tokenizer",   "-sweep",     "-lr",
          "-seed",   "-rendezvous", "-from",      "-resume_from", "-hellaswag", "-device"}) {
        INFO(flag);
        const std::string refusal = std::string(flag) + ": its value is empty";
        CHECK(mentions(error_of([&] { parse_command_line({flag, "", "-steps", "3"}); }), {refusal}));
        CHECK(mentions(error_of([&] { parse_command_line({std::string("-") + flag, ""}); }), {refusal}));
        CHECK(mentions(error_of([&] { parse_command_line({std::string(flag) + "="}); }), {refusal}));
    }
    CHECK(parse_command_line({"-prompt", ""})->prompt.empty());
    CHECK(parse_command_line({"-o=o="})->output_directory == "o=");
    CHECK(parse_command_line({"-sample", "", "-e", "out", "-tokenizer", "x.model"})->sample == "");
}

TEST_CASE("the limits of the ranges are inside", "[options]") {
    for (const char* line : {"-batch 1",
                             "-batch 1000000",
                             "-seq_len 1",
                             "-vocab 2",
                             "-vocab 2147483647",
                             "-threads 64",
                             "-logit_rows 1",
                             "-logit_rows 1000000",
                             "-temperature 0",
                             "-beta1 0",
                             "-beta2 0",
                             "-clip 0",
                             "-weight_decay 0",
                             "-scale_lr 0",
                             "-keep 0",
                             "-sample_tokens 0",
                             "-save_every 0",
                             "-group 32",
                             "-group 64",
                             "-group 128",
                             "-b 1",
                             "-b 2",
                             "-b 3",
                             "-b 5",
                             "-b 6",
                             "-b 8",
                             "-b 16",
                             "-qat_frac 0",
                             "-qat_frac 1"})
        CHECK(parse_error(line).empty());
}
