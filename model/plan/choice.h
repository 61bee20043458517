// Bits, and size with them, by the least loss that a law predicts: -b auto and -n auto.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/plan/scaling_law.h"

namespace train_qat {

// How far beyond the largest size fitted a size is still looked for, and how closely sizes lie.
inline constexpr double farthest_size = 30;
inline constexpr int sizes_per_doubling = 8;
// Among which bits; of them those from the fewest to the most bits that the law was fitted on.
inline constexpr std::array<double, 8> choosable_bits = {1, 1.58, 2, 3, 4, 5, 6, 8};

struct ChoiceRequest {
    std::shared_ptr<const ScalingLaw> law;
    std::optional<double> bits;          // nothing: to be chosen
    std::optional<int64_t> memory;       // most bytes of packed_model_bytes
    std::optional<double> qat_fraction;  // instead of f*
    int64_t group = 0;
    int64_t tokens_per_step = 0;
};

// A run that could be. Its tokens are its steps * tokens_per_step, its fraction f* of them, or the one asked for.
struct Candidate {
    std::string size;  // as -n takes it; empty where sizes are not chosen
    ModelConfig config;
    double bits = 0;
    int64_t steps = 0;
    int64_t bytes = 0;
    double fraction = 0;
    double loss = 0;
};

struct Choice {
    Candidate chosen;
    // For each number of bits its best run, ascending in bits; without `best`: none fits, and the least that it takes,
    // or if that would fit, the law predicts none.
    struct OfBits {
        double bits = 0;
        std::optional<Candidate> best;
        int64_t least_bytes = 0;
    };
    std::vector<OfBits> of_bits;
    std::vector<std::string> notes;  // one line each
};

// The bits (request.bits, or the best) of a model and a number of steps; of equal losses the fewer bits.
// std::runtime_error of one line: naming -memory and the smallest size, when nothing fits; -b auto, when the law was
// fitted on none of the bits that there are; -qat_frac, when the law predicts no loss.
Choice choose_bits(const ChoiceRequest& request, const ModelConfig& config, int64_t steps);

// Size, steps, bits and fraction for a budget of floating-point operations. Sizes: of 2^(k/8) parameters in three
// digits, as resolve_config makes shapes of them, from the smallest that it makes to what the memory permits, and to
// farthest_size times the largest fitted. Steps: flops / (training_flops_per_token * tokens_per_step) to the nearest,
// at least one. Errors: as above, and naming -flops where even the smallest model could not train for a step, and
// -n auto when the vocabulary's smallest model is farther away than that. Takes about half a second.
Choice choose_size(const ChoiceRequest& request, double flops, int64_t vocabulary, int64_t sequence_length,
                   const ConfigOverrides& shape);

// A table for people: for each number of bits its best run.
std::string format_choice(const Choice& choice, const ChoiceRequest& request);

}  // namespace train_qat
