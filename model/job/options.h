// The command line of train_qat: every flag, its default and its meaning. One dash or two: -qat_frac 0.25,
// --qat_frac 0.25 and --qat_frac=0.25 are the same.
#pragma once

#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "model/config.h"
#include "model/optimizer.h"
#include "model/plan/plan.h"

namespace train_qat {

// Patterns of shards (data/loader.h) and the path of the tokenizer they were made with; each may be empty.
struct DataFiles {
    std::string training, validation, tokenizer;
};

struct Options {
    // model
    std::string size;  // -n
    // -n auto, -b auto: not yet resolved (model/job/choices.h)
    bool choose_size = false, choose_bits = false;
    ConfigOverrides shape;
    std::optional<int64_t> vocabulary;
    int64_t sequence_length = 256;
    std::string initial_model;  // a Hugging Face folder whose sizes and weights the run begins with
    // quantization
    double bits = 4;
    bool bits_given = false;  // by -b, not its default
    int64_t group = 0;
    // parameters and tokens_per_step are filled in by plan_run (model/job/run_plan.h), law by with_law
    // (model/job/choices.h)
    PlanRequest plan;
    std::string law_file;
    std::optional<int64_t> memory;  // most bytes of the packed model
    std::optional<double> flops;    // of the training, with -n auto
    // data and output
    DataFiles data;
    std::string output_directory = "out";
    // run
    int64_t batch = 8;
    int64_t gradient_accumulation = 1;
    std::optional<int64_t> total_batch;  // sequences of a step over all ranks: sets gradient_accumulation
    std::string device = "auto";
    std::string dtype = "auto";
    std::string qat_gemm = "auto";
    std::string gemm = "auto";
    std::string attention = "auto";
    std::string master = "on";
    int64_t logit_rows = 0;  // computed at a time; 0: what suits the device
    std::string logits = "fp32";
    int threads = 0;
    uint64_t seed = 1;
    OptimizerConfig optimizer;
    int64_t validate_every = 0, validation_sequences = 160;
    int64_t save_every = 0, keep = 2;
    int64_t print_every = 1;
    bool tensorboard = false;
    std::vector<std::string> exports;  // formats of scripts/export.py to write at the end
    bool resume = false;
    std::string resume_from;       // with resume: the step or path of a checkpoint; empty: the latest
    std::string from;              // a checkpoint of another run with the same first steps
    std::optional<int64_t> until;  // stop after this step
    bool trunk = false;  // of a sweep: full-precision steps that several runs share, no run of its own
    bool plan_only = false;
    bool evaluate_only = false;
    std::string hellaswag;  // examples to evaluate it with (data/hellaswag.h)
    // for evaluate_only and sample: its directory, that of its run, or a Hugging Face folder
    std::string checkpoint;
    // many ranks
    int zero = 1;
    double rank_timeout = 600;  // seconds
    std::string rendezvous;
    // sweep
    std::string sweep;
    int sweep_ranks = 1;  // of a run
    bool retry_failed = false;
    // text of the model: a continuation of `sample`, or a run's sample at its end
    std::optional<std::string> sample;
    std::string prompt;
    int64_t sample_tokens = 128;
    double temperature = 0.8;
    int64_t top_k = 0;
    double top_p = 1;
};

// The name of the flag that an argument is, without dashes and without a value behind '='; nothing for values, among them
// negative numbers.
std::optional<std::string> flag_name(const std::string& argument);

// Reads the arguments (without the program's name). Returns nothing when only help was asked for, which is
// then written to `help`. Throws std::runtime_error with one line that names the flag.
std::optional<Options> parse_command_line(const std::vector<std::string>& arguments,
                                          std::ostream& help = std::cout);

}  // namespace train_qat
