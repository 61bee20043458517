// A small run whose checkpoints tests save, list and load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/storage/checkpoint.h"
#include "test/support/device.h"
#include "test/support/files.h"
#include "test/support/tensor_set.h"

namespace train_qat::test {

inline Backend& backend() {
    return *backends_under_test().front().backend;
}

// A model of two tensors and a scale, its moments, and a state.
struct SmallRun {
    TensorSet model{backend()}, optimizer{backend()};
    explicit SmallRun(uint32_t seed = 1) {
        model.add("model.norm.weight", DType::float32, {7}).add("layer.weight", DType::float32, {5, 3});
        model.add("layer.weight_scale", DType::float32, {5}).randomize(seed);
        optimizer.add("model.norm.weight.first_moment", DType::float32, {7});
        optimizer.add("model.norm.weight.second_moment", DType::float32, {7}).randomize(seed + 1);
    }
    CheckpointContents contents(int64_t step) {
        return {
            step, model.tensors(), optimizer.tensors(), {{"phase", "QAT"}, {"loader", {{"position", 77}}}}};
    }
    std::string save(const std::string& output, int64_t step, bool replace_existing = false) {
        return save_checkpoint(output, backend(), alone(), contents(step), replace_existing);
    }
};

inline std::vector<int64_t> steps_of(const std::string& output) {
    std::vector<int64_t> steps;
    for (const auto& entry : list_checkpoints(output)) steps.push_back(entry.step);
    return steps;
}

// Loads everything; what went wrong, or "".
inline std::string load_error(const std::string& path, SmallRun& into) {
    return error_of([&] {
        const CheckpointReader reader(path, alone());
        reader.load_model(backend(), alone(), into.model.tensors());
        reader.load_optimizer(backend(), alone(), into.optimizer.tensors());
    });
}

}  // namespace train_qat::test
