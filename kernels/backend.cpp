#include "kernels/backend.h"

#include "kernels/checks.h"

namespace train_qat {

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
