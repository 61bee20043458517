// What the tests of Hopper's instructions share: settings, fresh numbers, and what a failing launch says.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/platform/tensor_map.cuh"
#include "test/emulator/emulator_fixture.h"
#include "test/support/errors.h"

namespace train_qat::test {

inline emulator::Settings hopper_settings(uint64_t seed = 0) {
    emulator::Settings settings;
    settings.compute_capability = 90;
    settings.schedule_seed = seed;
    return settings;
}

// Other numbers in every run; a failing test says which.
class Fresh {
  public:
    explicit Fresh(uint64_t seed = std::random_device{}()) : seed(seed), random_(seed) {}
    const uint64_t seed;
    int64_t between(int64_t least, int64_t most) {
        return least + static_cast<int64_t>(random_() % static_cast<uint64_t>(most - least + 1));
    }
    // Multiples of 1/64 in [-1, 1]: exact in bfloat16, and so are products and sums of a few thousand in float32.
    template <typename T>
    std::vector<T> numbers(int64_t count) {
        std::vector<T> values(static_cast<size_t>(count));
        for (T& value : values) value = static_cast<T>(static_cast<float>(between(-64, 64)) / 64.0f);
        return values;
    }

  private:
    std::mt19937_64 random_;
};

// The message of the LaunchError that the work throws, "" without one.
template <typename Work>
std::string failure_of(const Work& work) {
    return error_of<emulator::LaunchError>(work);
}

// "" when `message` is one line that has all parts, else what is missing.
inline std::string lacking(const std::string& message, const std::vector<std::string>& parts) {
    if (message.empty()) return "no error";
    if (message.find('\n') != std::string::npos) return "more than a line: " + message;
    for (const std::string& part : parts)
        if (message.find(part) == std::string::npos) return "no \"" + part + "\" in: " + message;
    return "";
}

}  // namespace train_qat::test
