#include "model/plan/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {
namespace {

enum class Shape { warmup, stable, decay };

struct Segment {
    Shape shape;
    int64_t begin, end;  // steps [begin, end)
    double peak;
    std::string label;
};

void append(std::vector<Segment>& segments, Shape shape, int64_t steps, double peak,
            const std::string& label) {
    if (steps <= 0) return;
    const int64_t begin = segments.empty() ? 0 : segments.back().end;
    segments.push_back({shape, begin, begin + steps, peak, label});
}

std::vector<Segment> segments_of(const Plan& plan) {
    std::vector<Segment> segments;
    const bool two = plan.has_two_decays();
    const bool pure_qat = plan.fp_steps == 0;
    const double peak = pure_qat ? plan.qat_learning_rate : plan.learning_rate;
    const int64_t range = two ? plan.fp_steps : plan.total_steps;
    const std::string decay = plan.schedule == Schedule::cosine ? "cosine decay" : "cooldown";
    append(segments, Shape::warmup, plan.warmup_steps, peak, "warmup");
    append(segments, Shape::stable, range - plan.warmup_steps - plan.cooldown_steps, peak, "stable");
    append(segments, Shape::decay, plan.cooldown_steps, peak, decay);
    if (two) {
        append(segments, Shape::warmup, plan.qat_warmup_steps, plan.qat_learning_rate, "re-warmup");
        append(segments, Shape::decay, plan.qat_cooldown_steps, plan.qat_learning_rate, "QAT decay");
    }
    if (segments.empty() || segments.back().end != plan.total_steps) {
        throw std::logic_error("learning_rate: the plan's warmup and cooldown do not fill its steps");
    }
    return segments;
}

double value_at(const Plan& plan, const Segment& segment, int64_t step) {
    const auto offset = static_cast<double>(step - segment.begin);
    const auto length = static_cast<double>(segment.end - segment.begin);
    if (segment.shape == Shape::warmup) return segment.peak * ((offset + 1.0) / length);
    if (segment.shape == Shape::stable) return segment.peak;
    const double progress = offset / length;
    const double remaining = plan.schedule == Schedule::cosine
                                 ? 0.5 * (1.0 + std::cos(std::numbers::pi * progress))
                                 : 1.0 - progress;
    const double final_rate = segment.peak * plan.final_learning_rate_fraction;
    return final_rate + (segment.peak - final_rate) * remaining;
}

// The steps of a segment before `end` all have the value of its first one, bit by bit.
bool is_constant(const Plan& plan, const Segment& segment, int64_t end) {
    return std::min(segment.end, end) - segment.begin == 1 || segment.shape == Shape::stable ||
           (segment.shape == Shape::decay && plan.final_learning_rate_fraction == 1.0);
}

// Both are the same function of the step, as far as both go.
bool same_form(const Plan& a, const Segment& x, const Plan& b, const Segment& y) {
    if (x.shape != y.shape || x.begin != y.begin || x.end != y.end || x.peak != y.peak) return false;
    return x.shape != Shape::decay ||
           (a.schedule == b.schedule && a.final_learning_rate_fraction == b.final_learning_rate_fraction);
}

// The first step of [begin, end) where two segments differ, or `end`.
int64_t agreement_end(const Plan& a, const Segment& x, const Plan& b, const Segment& y, int64_t begin,
                      int64_t end) {
    // The first steps of different forms may agree: a decay starts at the peak of the stable range before it.
    constexpr int64_t compared_steps = 64;
    if (same_form(a, x, b, y)) return end;
    const bool constant = is_constant(a, x, end) && is_constant(b, y, end);
    const int64_t last = constant ? begin + 1 : std::min(end, begin + compared_steps);
    for (int64_t step = begin; step < last; ++step)
        if (value_at(a, x, step) != value_at(b, y, step)) return step;
    return constant ? end : last;
}

void check_step(const Plan& plan, int64_t step, const char* function) {
    if (step < 0 || step >= plan.total_steps) {
        throw std::logic_error(std::string(function) + ": step " + std::to_string(step) + " is outside [0, " +
                               std::to_string(plan.total_steps) + ")");
    }
}

}  // namespace

double learning_rate(const Plan& plan, int64_t step) {
    check_step(plan, step, "learning_rate");
    for (const Segment& segment : segments_of(plan)) {
        if (step < segment.end) return value_at(plan, segment, step);
    }
    throw std::logic_error("learning_rate: unreachable");
}

Phase phase_at(const Plan& plan, int64_t step) {
    check_step(plan, step, "phase_at");
    return step < plan.fp_steps ? Phase::full_precision : Phase::quantization_aware;
}

int64_t shared_steps(const Plan& a, const Plan& b) {
    const std::vector<Segment> of_a = segments_of(a), of_b = segments_of(b);
    const int64_t limit = std::min(a.fp_steps, b.fp_steps);
    int64_t step = 0;
    for (auto x = of_a.begin(), y = of_b.begin(); step < limit;) {
        const int64_t end = std::min({x->end, y->end, limit});
        step = agreement_end(a, *x, b, *y, step, end);
        if (step < end) break;
        if (x->end == step) ++x;
        if (y->end == step) ++y;
    }
    return step;
}

std::string curve_text(const Plan& plan, int64_t steps) {
    if (steps < 0 || steps > plan.total_steps)
        throw std::logic_error("curve_text: steps are outside the plan");
    std::string text, constant;
    for (const Segment& segment : segments_of(plan)) {
        if (segment.begin >= steps) break;
        // Constant stretches join: where a stable range ends does not show in its steps.
        if (is_constant(plan, segment, steps)) {
            const std::string value = formatted("constant %a from ", value_at(plan, segment, segment.begin));
            if (value != constant) text += value + std::to_string(segment.begin) + "; ";
            constant = value;
            continue;
        }
        constant.clear();
        const auto begin = static_cast<long long>(segment.begin);
        const auto length = static_cast<long long>(segment.end - segment.begin);
        if (segment.shape == Shape::warmup)
            text += formatted("warmup to %a from %lld over %lld; ", segment.peak, begin, length);
        else
            text += formatted("%s from %a to its %a from %lld over %lld; ", to_string(plan.schedule).c_str(),
                              segment.peak, plan.final_learning_rate_fraction, begin, length);
    }
    return text + "end " + std::to_string(steps);
}

std::vector<Milestone> milestones(const Plan& plan) {
    std::vector<Milestone> list;
    const int64_t switch_step = plan.fp_steps > 0 && plan.qat_steps > 0 ? plan.fp_steps : -1;
    bool switch_listed = switch_step < 0;
    const auto list_switch = [&] {
        list.push_back({switch_step, learning_rate(plan, switch_step), "switch to QAT"});
        switch_listed = true;
    };
    for (const Segment& segment : segments_of(plan)) {
        if (!switch_listed && switch_step < segment.begin) list_switch();
        std::string label = segment.label + " begins";
        if (segment.begin == switch_step) {
            label = "switch to QAT, " + label;
            switch_listed = true;
        }
        list.push_back({segment.begin, value_at(plan, segment, segment.begin), label});
    }
    if (!switch_listed) list_switch();
    const int64_t last = plan.total_steps - 1;
    if (list.back().step == last) {
        list.back().label += ", last step";
    } else {
        list.push_back({last, learning_rate(plan, last), "last step"});
    }
    return list;
}

}  // namespace train_qat
