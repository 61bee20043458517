// Parts of parameters.
#include <stdexcept>

#include "kernels/weights.h"

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

}  // namespace train_qat
