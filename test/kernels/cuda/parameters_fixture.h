// What the tests of the CUDA backend's operations on parameters have in common.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "test/support/device.h"

namespace train_qat::test {

using Bytes = std::vector<unsigned char>;

// All backends under test but the CPU.
inline std::vector<BackendUnderTest> cuda_backends() {
    std::vector<BackendUnderTest> result;
    for (const BackendUnderTest& device : backends_under_test())
        if (!device.is_cpu()) result.push_back(device);
    return result;
}

struct MatrixCase {
    int64_t rows, columns, group;
};
// One scale per row and groups, sizes that are multiples of nothing, rows longer than a warp's step.
inline const std::vector<MatrixCase> matrix_cases = {
    {1, 1, 1},     {5, 7, 7},      {33, 128, 128},  {3, 130, 130}, {9, 96, 32},  {6, 256, 64}, {3, 256, 128},
    {7, 100, 100}, {65, 260, 260}, {2, 1027, 1027}, {4, 1152, 32}, {11, 31, 31}, {13, 576, 64}};

inline std::string text(Grid grid, const MatrixCase& c) {
    return std::string(reference::name_of(grid)) + " " + std::to_string(c.rows) + " x " +
           std::to_string(c.columns) + " group " + std::to_string(c.group);
}

template <typename T>
std::vector<T> numbers_of(Backend& backend, const void* device, int64_t count) {
    std::vector<T> result(count);
    backend.copy_to_host(result.data(), device, count * static_cast<int64_t>(sizeof(T)));
    return result;
}
inline Bytes bytes_of(Backend& backend, const void* device, int64_t bytes) {
    return numbers_of<unsigned char>(backend, device, bytes);
}
// As much as the plain form takes: other forms take less, or their tails are the same.
inline Bytes storage_of(Backend& backend, const ComputeWeight& weight) {
    return bytes_of(backend, weight.storage, weight.rows * weight.columns * size_of(weight.dtype));
}

inline bfloat16* narrow_copy(Bench& bench, const HostParameter& host) {
    return bench
        .update("narrow master", reference::rounded(DType::bfloat16, host.master), DType::bfloat16,
                {host.rows, host.columns})
        .as<bfloat16>();
}
// The parameter with its weights in bfloat16 only.
inline ParameterRows place_narrow(Bench& bench, const HostParameter& host, ComputeWeight* compute) {
    ParameterRows parameter = place(bench, host, compute);
    parameter.master = nullptr;
    parameter.narrow_master = narrow_copy(bench, host);
    return parameter;
}

inline AdamWStep example_step(int64_t t = 1) {
    AdamWStep step;
    step.learning_rate = 1e-2f;
    step.scale_learning_rate = 1e-3f;
    step.weight_decay = 0.1f;
    step.step = t;
    return step;
}

}  // namespace train_qat::test
