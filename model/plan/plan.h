// The planner: how many of a run's tokens train in full precision (FP) and how many quantization-aware (QAT),
// after Compute-Optimal Quantization-Aware Training (arXiv 2509.22935), and the steps that follow from it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/config.h"
#include "model/plan/predictions.h"

namespace train_qat {

enum class Phase { full_precision, quantization_aware };
enum class Schedule { wsd, cosine };
enum class Cooldown { fused, classic, automatic };

// The one fitted constant a of the law for the optimal QAT fraction (arXiv 2509.22935; mean absolute error
// 0.091 in the fraction over its runs).
inline constexpr double qat_fraction_constant = 6.7297;
// Without a law of one's own, whose cooldown it takes, `automatic` fuses cooldown and QAT from this many bits on: reported to
// help at 4 and 6 bits and not at 1 and 2. Nothing was reported for 3, whose grid and LSQ quantizer are those of 4: our choice.
inline constexpr double fused_from_bits = 3.0;

// Without -tokens and -steps: what full-precision training is said to use best (Chinchilla, arXiv 2203.15556),
// and the least that the law above was fitted on.
inline constexpr int64_t default_tokens_per_parameter = 20;
inline constexpr double default_warmup_fraction = 0.02;      // of all steps
inline constexpr double default_cooldown_fraction = 0.2;     // see Plan::cooldown_steps
inline constexpr double default_qat_warmup_fraction = 0.05;  // of the QAT steps, classic cooldown only

using StepsOrFraction = std::variant<int64_t, double>;

struct PlanRequest {
    int64_t parameters = 0;              // N: all parameters, the tied embedding once (see make_plan)
    double bits = 4.0;                   // 1, 1.58, 2, 3, 4, 5, 6, 8; 16 trains without quantization
    std::optional<double> qat_fraction;  // 0 to 1; without it the law decides
    // That law; without it the one-constant law with the constant above.
    std::shared_ptr<const ScalingLaw> law;
    std::optional<int64_t> tokens;  // D; tokens, or steps, or neither: 20 tokens per parameter
    std::optional<int64_t> steps;
    int64_t tokens_per_step = 0;  // global batch * sequence length
    Schedule schedule = Schedule::wsd;
    Cooldown cooldown = Cooldown::automatic;
    std::optional<StepsOrFraction> warmup;      // steps, or a fraction of all steps
    std::optional<double> cooldown_fraction;    // WSD only
    double learning_rate = 1e-3;                // peak
    double final_learning_rate_fraction = 0.0;  // of the peak of the range that decays
    std::optional<double> qat_learning_rate;    // peak after the re-warmup (classic) or of a pure QAT run
    std::optional<StepsOrFraction> qat_warmup;  // re-warmup (classic): steps, or a fraction of the QAT steps
};

// Steps [0, fp_steps) train in full precision and [fp_steps, total_steps) quantization-aware.
//
// "Two decays" below is a classic cooldown with both ranges present; every other plan has one decay.
struct Plan {
    int64_t parameters = 0;
    int64_t tokens_per_step = 0;
    double bits = 0.0;
    double tokens_per_parameter_byte = 0.0;  // S, of the tokens that the whole steps train on
    // f*; absent for 16 bits, and for S <= 1 where the one-constant law gives it.
    std::optional<double> predicted_fraction;
    double qat_fraction = 0.0;  // the fraction used, before rounding to whole steps
    bool fraction_was_auto = false, tokens_were_auto = false;
    int64_t total_steps = 0, fp_steps = 0, qat_steps = 0;

    Schedule schedule = Schedule::wsd;
    Cooldown cooldown = Cooldown::fused;  // resolved: fused or classic
    bool cooldown_was_auto = false;
    double learning_rate = 0.0;      // peak of the FP range, or of the only range
    double qat_learning_rate = 0.0;  // peak of the QAT range
    double final_learning_rate_fraction = 0.0;
    int64_t warmup_steps = 0;      // from step 0
    int64_t cooldown_steps = 0;    // the decay's steps: last of the run; with two decays last of the FP range
    int64_t qat_warmup_steps = 0;  // with two decays only: the first QAT steps,
    int64_t qat_cooldown_steps = 0;  // and all the others

    std::vector<std::string> notes;  // what was shortened to fit, one line each
    // Of the request's law. make_plan leaves them to predict() (model/plan/predictions.h).
    std::optional<LawPredictions> predictions;

    int64_t tokens() const { return total_steps * tokens_per_step; }
    int64_t fp_tokens() const { return fp_steps * tokens_per_step; }
    int64_t qat_tokens() const { return qat_steps * tokens_per_step; }
    bool has_two_decays() const { return cooldown == Cooldown::classic && fp_steps > 0 && qat_steps > 0; }
};

// S = D / (N*B/8), tokens per byte of quantized parameters. B is the plain number of bits: 1.58 stands for
// itself (our reading; log2(3) would be 1.585).
double tokens_per_parameter_byte(double tokens, double parameters, double bits);

// The one-constant law: f* = exp(ln S - a/ln S) / S = exp(-a/ln S), the fraction of the tokens to train
// quantization-aware. Grows with S from 0 at S = 1 towards 1. At S <= 1 it makes no prediction: std::runtime_error.
double optimal_qat_fraction(double tokens_per_parameter_byte, double constant = qat_fraction_constant);

// Resolves a request into whole steps.
//
// N counts all parameters: the tied embedding is trained, quantized (to at least 4 bits) and shipped like the
// block linears, and total size is how the law's authors name their models (our reading: their N is not
// spelled out in the sources at hand).
//
// Steps: tokens / tokens_per_step rounded to the nearest, of default tokens at least one. QAT steps: fraction * steps rounded to the nearest;
// a fraction above 0 gives at least one QAT step and one below 1 at least one FP step when there are two
// steps. 16 bits has no QAT; fraction 1 is QAT from initialization.
//
// Learning rate: see schedule.h for the curve. Steps of warmup and cooldown are shortened, with a note in the
// plan, when their range is too short:
//   one decay    warmup (of all steps) fits into the FP range, or into all steps when there is one range;
//                cooldown: WSD cooldown_fraction of ALL steps, for a fused plan no more than the QAT range,
//                so that the decay lies inside it; cosine: everything after the warmup
//   two decays   FP: warmup as above, cooldown_fraction of the FP steps (cosine: all after the warmup);
//                QAT: re-warmup, then the rest decays
// The source says fused is "FP [warmup, stable] then QAT starting at peak LR with the decay inside it",
// without the decay's length. Taken from all steps it is as long as in a run without QAT, and the whole QAT
// range where that is shorter. The FP steps of all fused plans with the same warmup thus share one stable
// trunk. Pure QAT (fraction 1) takes -qat_lr and -qat_warmup before -lr and -warmup where they are given.
//
// Throws std::runtime_error with one line that names the flag (-b, -qat_frac, -tokens, -steps, -lr, -warmup,
// -cooldown_frac, -final_lr_frac, -qat_lr, -qat_warmup) for values out of range, for both tokens and steps,
// for S <= 1 without a fraction, and for settings that the plan could not honour.
Plan make_plan(const PlanRequest& request);

// The steps of that plan alone, which depend on parameters, tokens, steps and tokens_per_step. The same errors.
int64_t planned_steps(const PlanRequest& request);

// The text of -plan: N, D, B, S, f*, phases, cooldown, learning rate milestones and floating-point
// operations.
std::string format_plan(const Plan& plan, const ModelConfig& config);

// "wsd", "cosine"; "fused", "classic", "auto"; "FP", "QAT". Parsing: std::runtime_error naming the flag.
std::string to_string(Schedule schedule);
std::string to_string(Cooldown cooldown);
std::string to_string(Phase phase);
Schedule parse_schedule(const std::string& text, const std::string& flag = "-schedule");
Cooldown parse_cooldown(const std::string& text, const std::string& flag = "-cooldown");

// "200" is steps, "0.02" (with a decimal point) a fraction from 0 to 1.
StepsOrFraction parse_steps_or_fraction(const std::string& text, const std::string& flag);

// "4", "1.58".
std::string format_bits(double bits);
// "1 bit", "1.58 bits".
std::string bits_with_unit(double bits);

}  // namespace train_qat
