// What the tests of matmuls on the emulated device have in common.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "test/support/catch.h"
#include "test/support/device.h"

namespace train_qat::test {

inline Backend& emulated_device() {
    static const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(CudaOptions{});
    return *backend;
}
inline CU_BACKEND::CuStream emulated_stream() {
    return dynamic_cast<CU_BACKEND::CudaBackend&>(emulated_device()).device().stream();
}

// While it lives, the emulated device is of compute capability 9.0.
class HopperScope {
  public:
    HopperScope() : scope_(with_hopper(emulator::settings())) {}

  private:
    static emulator::Settings with_hopper(emulator::Settings settings) {
        settings.compute_capability = 90;
        return settings;
    }
    emulator::SettingsScope scope_;
};

// With all matmuls by Hopper's instructions.
inline std::unique_ptr<Backend> make_hopper_device(CudaOptions options = {}) {
    const HopperScope scope;
    options.qat_gemm = QatGemm::hopper;
    options.gemm = DenseGemm::hopper;
    return make_emulated_cuda_backend(options);
}
inline CU_BACKEND::Device& device_of(Backend& backend) {
    return dynamic_cast<CU_BACKEND::CudaBackend&>(backend).device();
}
inline Backend& hopper_device() {
    static const std::unique_ptr<Backend> backend = make_hopper_device();
    return *backend;
}
// What is launched from here on: the device is there before, for the first use of it launches a kernel of its own.
inline emulator::Recorder record_hopper() {
    hopper_device();
    return emulator::Recorder();
}

// Calls `body` with races checked and threads in several orders.
inline void in_several_orders(const std::function<void()>& body) {
    for (uint64_t seed : {0, 1, 2}) {
        INFO("schedule " << seed);
        emulator::Settings settings = emulator::settings();
        settings.check_races = true;
        settings.schedule_seed = seed;
        const emulator::SettingsScope scope(settings);
        body();
    }
}

// Of a product.
struct Extents {
    int64_t rows, columns, inner;
};

constexpr CU_BACKEND::MatmulForm matmul_forms[] = {CU_BACKEND::MatmulForm::nt, CU_BACKEND::MatmulForm::nn,
                                                   CU_BACKEND::MatmulForm::tn};
inline const char* name_of(CU_BACKEND::MatmulForm form) {
    using enum CU_BACKEND::MatmulForm;
    return form == nt ? "nt" : form == nn ? "nn" : "tn";
}

// A product, and what is wrong with it ("": nothing).
struct Outcome {
    Array values;
    std::string wrong;
};

struct DenseProduct {
    CU_BACKEND::MatmulForm form;
    Extents extents;
    DType type, out_type;
    bool accumulate = false;
    int64_t shift = 0;  // elements by which operands begin behind an aligned address
    uint64_t numbers = 11;
};
// By `multiply`(form, out, a, b, accumulate).
template <typename Multiply>
Outcome dense_outcome(Backend& backend, const DenseProduct& p, Multiply&& multiply) {
    using enum CU_BACKEND::MatmulForm;
    const Extents& e = p.extents;
    Random random(p.numbers);
    Bench bench(backend);
    const Array a = random.normals(e.rows * e.inner, p.type), b = random.normals(e.inner * e.columns, p.type);
    const Array before = p.accumulate ? random.normals(e.rows * e.columns, p.out_type) : Array();
    const auto operand = [&](const char* name, const Array& values, int64_t rows, int64_t columns) {
        Array shifted(p.shift, std::nan(""));
        shifted.insert(shifted.end(), values.begin(), values.end());
        const Tensor memory = bench.input(name, shifted, p.type, {static_cast<int64_t>(shifted.size())});
        return Tensor(static_cast<char*>(memory.data) + p.shift * size_of(p.type), p.type, {rows, columns});
    };
    const Tensor out = p.accumulate ? bench.update("out", before, p.out_type, {e.rows, e.columns})
                                    : bench.output("out", p.out_type, {e.rows, e.columns});
    const Tensor left = p.form == tn ? operand("a", a, e.inner, e.rows) : operand("a", a, e.rows, e.inner);
    const Tensor right =
        p.form == nt ? operand("b", b, e.columns, e.inner) : operand("b", b, e.inner, e.columns);
    multiply(p.form, out, left, right, p.accumulate);
    const reference::Result expected =
        p.form == nt   ? reference::matmul_forward(a, {b, {}}, e.rows, e.columns, e.inner)
        : p.form == nn ? reference::matmul_input_gradient(a, b, e.rows, e.inner, e.columns)
                       : reference::matmul_weight_gradient(a, b, before, e.inner, e.rows, e.columns);
    const Array values = bench.read(out);
    return {values, difference(values, expected, p.out_type, float32_sum(e.inner)) + bench.damage()};
}

struct Tile {
    CU_BACKEND::TileSize size;
    int64_t rows, columns;
};
constexpr Tile matmul_tiles[] = {{CU_BACKEND::TileSize::small, 128, 64},
                                 {CU_BACKEND::TileSize::large, 256, 128}};

// What all matmuls on tensor cores have in common: rows and columns of the product, padded to whole tiles,
// cost FLOP; no access meets a bank conflict; whole sectors are stored.
inline emulator::LaunchReport lint_matmul(const Extents& e, const Tile& tile,
                                          const std::function<void()>& call) {
    const auto round_up = [](int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; };
    emulator::Recorder recorder;
    call();
    REQUIRE(recorder.launches().size() == 1);
    const emulator::LaunchReport& launch = recorder.launches()[0];
    INFO(emulator::markdown(recorder.launches()));
    CHECK(launch.tensor_core_flops ==
          2 * round_up(e.rows, tile.rows) * round_up(e.columns, tile.columns) * round_up(e.inner, 32));
    CHECK(launch.bank_conflicts() == 0);
    CHECK(launch.shared_bytes <= 99 << 10);  // what every card since 2020 has
    CHECK(launch.store_sectors == launch.ideal_store_sectors);
    return launch;
}

}  // namespace train_qat::test
