#include "kernels/backend.h"

#include <stdexcept>
#include <string>

#include "kernels/checks.h"

namespace train_qat {

void Backend::check_remainder(const char* operation, const Tensor& y_remainder, bool needed) const {
    if (needed && wants_attention_remainder() && y_remainder.empty())
        throw std::logic_error(std::string(operation) + ": this backend needs y_remainder");
    if (!wants_attention_remainder() && !y_remainder.empty())
        throw std::logic_error(std::string(operation) + ": this backend takes no y_remainder");
}

void Backend::replay(const ReplayKey& key, const std::function<void()>& work) {
    if (observer_ != nullptr)
        work();
    else
        replay_recorded(key, work);
}

std::vector<WeightMessage> Backend::weight_messages(std::span<const ParameterRows> parameters, void* buffer) {
    for (const ParameterRows& parameter : parameters) check_compute_rows("weight_messages", parameter);
    return place_weight_messages(parameters, buffer);
}

}  // namespace train_qat
