#include "kernels/weights.h"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace train_qat {

ParameterRows rows_of(const ParameterRows& whole, int64_t first, int64_t count) {
    if (first < 0 || count < 0 || first + count > whole.rows)
        throw std::logic_error("rows_of: rows outside the parameter");
    ParameterRows part = whole;
    const auto forward = [](auto*& pointer, int64_t elements) {
        if (pointer != nullptr) pointer += elements;
    };
    const int64_t elements = first * whole.columns;
    forward(part.master, elements);
    forward(part.narrow_master, elements);
    forward(part.gradient, elements);
    forward(part.first_moment, elements);
    forward(part.second_moment, elements);
    const int64_t scales = whole.group > 0 ? first * (whole.columns / whole.group) : 0;
    forward(part.scale, scales);
    forward(part.scale_gradient, scales);
    forward(part.scale_first_moment, scales);
    forward(part.scale_second_moment, scales);
    part.rows = count;
    part.first_row += first;
    part.first_element += elements;
    return part;
}

namespace {

AdamWConstants constants(const AdamWStep& step, float learning_rate, int64_t t, float weight_decay,
                         float lowest) {
    const double correction1 = 1.0 - std::pow(static_cast<double>(step.beta1), static_cast<double>(t));
    const double correction2 = 1.0 - std::pow(static_cast<double>(step.beta2), static_cast<double>(t));
    return {step.beta1,
            step.beta2,
            static_cast<float>(learning_rate / correction1),
            static_cast<float>(1.0 / std::sqrt(correction2)),
            step.epsilon,
            1.0f - learning_rate * weight_decay,
            lowest};
}

}  // namespace

AdamWConstants constants_of_weights(const AdamWStep& step, bool decay) {
    return constants(step, step.learning_rate, step.step, decay ? step.weight_decay : 0.0f,
                     -std::numeric_limits<float>::infinity());
}

AdamWConstants constants_of_scales(const AdamWStep& step) {
    return constants(step, step.scale_learning_rate, step.scale_step, 0.0f, smallest_scale);
}

}  // namespace train_qat
