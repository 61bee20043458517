// The learning rate of every step of a plan.
//
// A curve is a row of segments without gaps over [0, total_steps):
//   warmup of n steps   peak * (k+1)/n for k = 0..n-1: the first step learns and the last one is at the peak
//   stable              peak
//   decay of n steps    final + (peak - final) * shape(k/n) for k = 0..n-1, shape(x) = 1 - x for WSD and
//                       (1 + cos(pi x)) / 2 for cosine: starts at the peak and would reach final one step
//                       after its last, so that no step is spent at a learning rate of zero
//
// By the number of decays:
//   one (fused, pure FP, pure QAT)   warmup, stable, decay; the switch to QAT changes nothing in the curve.
//                                    WSD fused: the decay lies inside the QAT range. Cosine fused: one
//                                    cosine from the end of the warmup, the switch inside it.
//   two (classic)                    FP warmup, stable, decay; then QAT re-warmup and decay over the rest,
//                                    with the peak qat_learning_rate.
// A range of one step without warmup trains it at its peak.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/plan/plan.h"

namespace train_qat {

struct Milestone {
    int64_t step;
    double learning_rate;
    std::string label;
};

// The learning rate of a step in [0, total_steps). Depends on nothing but its arguments: a resumed run
// continues the same curve. std::logic_error for a step outside the plan.
double learning_rate(const Plan& plan, int64_t step);

// Full precision for steps [0, fp_steps), else quantization-aware. std::logic_error outside the plan.
Phase phase_at(const Plan& plan, int64_t step);

// How many first steps are full-precision in both plans and have bit-equal learning rates: what one training
// run can do for both. Compares segments, not steps, so it costs the same for any length; where two segments
// of different form agree for long, it stops early. Never too many.
int64_t shared_steps(const Plan& a, const Plan& b);

// The learning rates of the steps [0, steps) as text: equal texts mean bit-equal learning rates, whatever
// comes after. std::logic_error for steps outside [0, total_steps].
std::string curve_text(const Plan& plan, int64_t steps);

// The first step of every segment, the switch to QAT and the last step, in order of steps, for printing.
std::vector<Milestone> milestones(const Plan& plan);

}  // namespace train_qat
