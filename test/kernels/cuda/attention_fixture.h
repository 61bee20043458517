// What the tests of CUDA's attention share: the devices, one run of it, and the double-precision oracle's answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "test/support/catch.h"
#include "test/support/device.h"

namespace train_qat::test {

inline constexpr DType type = DType::bfloat16;
inline constexpr double slack = 0x1p-8;  // as in test_attention.cpp
inline constexpr int64_t tensor_core_head_dims[] = {16, 32, 64, 96, 128};

// A CUDA device under test, used while emulated launches run with settings().
struct CudaDevice : BackendUnderTest {
    bool hopper = false;  // its attention is by Hopper's own instructions
    emulator::Settings settings() const {
        emulator::Settings result = emulator::settings();
        if (hopper) result.compute_capability = 90;
        return result;
    }
};

// The device by Hopper's own instructions: the emulated one, or the card where it is one. nullptr: neither is tested.
inline Backend* hopper_backend() {
    static const std::unique_ptr<Backend> made = [] {
        CudaOptions options;
        options.attention = AttentionKernels::hopper;
        std::unique_ptr<Backend> result;
        for (const BackendUnderTest& device : backends_under_test(type)) {
            if (device.device.starts_with("emulated")) {
                const emulator::SettingsScope scope(CudaDevice{device, true}.settings());
                return make_emulated_cuda_backend(options);
            }
            if (device.backend->describe().find("compute capability 9.0") != std::string::npos)
                result = make_cuda_backend(options);
        }
        return result;
    }();
    return made.get();
}

// Those that compute attention of such heads with tensor cores.
inline std::vector<CudaDevice> cuda_devices(int64_t head_dim) {
    std::vector<CudaDevice> result;
    for (const BackendUnderTest& device : backends_under_test(type))
        if (!device.is_cpu()) result.push_back({device});
    if ((head_dim == 64 || head_dim == 128) && hopper_backend() != nullptr)
        result.push_back({{"Hopper's attention", "Hopper", hopper_backend()}, true});
    return result;
}

inline Backend& emulated() {
    static const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(CudaOptions{});
    return *backend;
}

// The emulated device with Hopper's instructions, and the backend that uses them there.
inline emulator::Settings hopper_settings(uint64_t schedule, bool check_races = false) {
    emulator::Settings settings = emulator::settings();
    settings.compute_capability = 90;
    settings.schedule_seed = schedule;
    settings.check_races = check_races;
    return settings;
}

inline Backend& hopper() {
    static const std::unique_ptr<Backend> backend = [] {
        const emulator::SettingsScope scope(hopper_settings(0));
        CudaOptions options;
        options.attention = AttentionKernels::hopper;
        return make_emulated_cuda_backend(options);
    }();
    return *backend;
}

inline reference::Shape plain(const AttentionShape& s) {
    return {s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
}

inline std::string text(const AttentionShape& s) {
    return "B " + std::to_string(s.batch) + " T " + std::to_string(s.sequence) + " H " +
           std::to_string(s.heads) + " G " + std::to_string(s.kv_heads) + " D " + std::to_string(s.head_dim);
}

// One forward and one backward call, each tensor `offset` elements behind a multiple of 16 bytes.
struct Run {
    Bench bench;
    AttentionShape shape;
    int64_t offset;
    Tensor qkv, y, log_sum_exp, dqkv, y_remainder;  // the last is empty where the backend does not want it

    Run(Backend& backend, const AttentionShape& s, const Array& values, int64_t offset_ = 0,
        DType dtype = type)
        : bench(backend), shape(s), offset(offset_) {
        qkv = shifted(bench.input("qkv", padded(values), dtype, {offset + std::ssize(values)}),
                      {s.rows(), s.qkv_columns()});
        y = shifted(bench.output("y", dtype, {offset + s.rows() * s.heads * s.head_dim}),
                    {s.rows(), s.heads * s.head_dim});
        log_sum_exp = bench.output("log_sum_exp", DType::float32, {s.batch, s.heads, s.sequence});
        if (backend.wants_attention_remainder())
            y_remainder = bench.output("y_remainder", dtype, {s.rows(), s.heads * s.head_dim});
        dqkv =
            shifted(bench.output("dqkv", dtype, {offset + std::ssize(values)}), {s.rows(), s.qkv_columns()});
    }
    void forward() {
        bench.backend().attention_forward(
            {.y = y, .log_sum_exp = log_sum_exp, .qkv = qkv, .y_remainder = y_remainder, .shape = shape});
    }
    void backward(const Array& gradient) {
        const Tensor dy = shifted(bench.input("dy", padded(gradient), y.dtype, {offset + y.elements()}),
                                  {shape.rows(), shape.heads * shape.head_dim});
        const int64_t bytes = bench.backend().attention_backward_workspace(shape);
        bench.backend().attention_backward({.dqkv = dqkv,
                                            .dy = dy,
                                            .qkv = qkv,
                                            .y = y,
                                            .log_sum_exp = log_sum_exp,
                                            .y_remainder = y_remainder,
                                            .shape = shape,
                                            .workspace = bench.workspace(bytes)});
    }

  private:
    Array padded(const Array& values) const {
        Array result(offset, 0.0);
        result.insert(result.end(), values.begin(), values.end());
        return result;
    }
    Tensor shifted(const Tensor& all, std::initializer_list<int64_t> extents) const {
        return Tensor(static_cast<char*>(all.data) + offset * size_of(all.dtype), all.dtype, extents);
    }
};

struct Expected {
    reference::AttentionForward forward;
    reference::Result dqkv;
    Expected(const AttentionShape& s, const Array& qkv, const Array& dy)
        : forward(reference::attention_forward(qkv, plain(s))),
          dqkv(reference::attention_backward(dy, qkv, forward.y.value, forward.log_sum_exp, plain(s))) {}
    reference::Result log_sum_exp() const {
        reference::Result bound;
        bound.value = forward.log_sum_exp;
        bound.magnitude = forward.log_sum_exp_magnitude;
        return bound;
    }
};

inline void check_forward(Run& run, const Expected& expected, double allowed = slack) {
    run.forward();
    CHECK(difference(run.bench.read(run.y), expected.forward.y, run.y.dtype, allowed) == "");
    CHECK(difference(run.bench.read(run.log_sum_exp), expected.log_sum_exp(), DType::float32, 0x1p-20) == "");
    CHECK(run.bench.damage() == "");
}
inline void check_backward(Run& run, const Array& dy, const Expected& expected, double allowed = slack) {
    run.backward(dy);
    CHECK(difference(run.bench.read(run.dqkv), expected.dqkv, run.y.dtype, allowed) == "");
    CHECK(run.bench.damage() == "");
}

struct Bits {
    Array y, log_sum_exp, dqkv;
    bool operator==(const Bits&) const = default;
};
inline Bits bits_of(Backend& backend, const AttentionShape& s, const Array& qkv, const Array& dy) {
    Run run(backend, s, qkv);
    run.forward();
    run.backward(dy);
    return {run.bench.read(run.y), run.bench.read(run.log_sum_exp), run.bench.read(run.dqkv)};
}

inline int64_t not_finite(const Array& values, int64_t first, int64_t last) {
    return std::count_if(values.begin() + first, values.begin() + last,
                         [](double value) { return !std::isfinite(value); });
}

}  // namespace train_qat::test
