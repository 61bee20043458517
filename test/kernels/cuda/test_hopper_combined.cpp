// A matmul and what follows it in one kernel by Hopper's instructions, on the emulated device: right in all shapes and
// schedules, and left to others where there is no such kernel.
#include <string>
#include <vector>

#include "kernels/cuda/hopper_matmul/hopper_combined.h"
#include "test/emulator/hopper_fixture.h"
#include "test/kernels/combined_fixture.h"
#include "test/kernels/cuda/matmul_fixture.h"
#include "test/support/catch.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Quantized weights as levels, which dense kernels multiply with.
Backend& dense_hopper() {
    static const std::unique_ptr<Backend> backend = [] {
        const HopperScope scope;
        CudaOptions options;
        options.gemm = DenseGemm::hopper;
        options.qat_gemm = QatGemm::cublaslt;
        return make_emulated_cuda_backend(options);
    }();
    return *backend;
}

emulator::Settings order(uint64_t schedule, bool races = false) {
    emulator::Settings settings = hopper_settings(schedule);
    settings.check_races = races;
    return settings;
}

CombinedOutcome rope_on_hopper(const RopeCase& c, int tile, uint64_t schedule, bool races = false) {
    const emulator::SettingsScope scope(order(schedule, races));
    // Not rounded before it is turned.
    return matmul_rope(dense_hopper(), c, float32_sum(c.K) + 0x1p-21, [&](const MatmulRopeForward& a) {
        hopper_matmul_rope_forward(device_of(dense_hopper()), a, tile);
    });
}
CombinedOutcome swiglu_on_hopper(const SwigluCase& c, int tile, uint64_t schedule, bool races = false) {
    const emulator::SettingsScope scope(order(schedule, races));
    return matmul_swiglu(dense_hopper(), c, [&](const MatmulSwigluForward& a) {
        hopper_matmul_swiglu_forward(device_of(dense_hopper()), a, tile);
    });
}

RopeCase fresh_rope(Fresh& fresh, int64_t head_dim, bool scaled) {
    const int64_t kv_heads = fresh.between(1, 2), heads = kv_heads * fresh.between(1, 256 / head_dim);
    return {{fresh.between(1, 3), fresh.between(1, 90), heads, kv_heads, head_dim},
            8 * fresh.between(1, 20),
            scaled,
            DType::bfloat16,
            fresh.seed};
}

}  // namespace

TEST_CASE("Hopper turns a product before it is stored", "[matmul_rope_forward][cuda][hopper]") {
    Fresh fresh;
    uint64_t schedule = 0;
    for (int64_t head_dim : {32, 64, 128})
        for (const bool scaled : {false, true})
            for (int tile : {128, 256}) {
                const RopeCase c = fresh_rope(fresh, head_dim, scaled);
                INFO(text(c) << ", tiles of " << tile << ", schedule " << schedule);
                CHECK(rope_on_hopper(c, tile, schedule).wrong == "");
                schedule = (schedule + 1) % 5;
            }
    const RopeCase one{{1, 1, 1, 1, 32}, 8, true, DType::bfloat16, fresh.seed};
    INFO(text(one));
    CHECK(rope_on_hopper(one, 0, 1).wrong == "");
}

TEST_CASE("Hopper computes SwiGLU of a product that it stores", "[matmul_swiglu_forward][cuda][hopper]") {
    Fresh fresh;
    uint64_t schedule = 0;
    for (int64_t most_columns : {8, 100, 300})
        for (const bool scaled : {false, true})
            for (int tile : {128, 256}) {
                const SwigluCase c{fresh.between(1, 200),    8 * fresh.between(1, most_columns / 8),
                                   8 * fresh.between(1, 40), scaled,
                                   DType::bfloat16,          fresh.seed};
                INFO(text(c) << ", tiles of " << tile << ", schedule " << schedule);
                CHECK(swiglu_on_hopper(c, tile, schedule).wrong == "");
                schedule = (schedule + 1) % 5;
            }
    const SwigluCase one{1, 8, 8, true, DType::bfloat16, fresh.seed};
    INFO(text(one));
    CHECK(swiglu_on_hopper(one, 0, 1).wrong == "");
}

TEST_CASE("Hopper's combined kernels have no races and give the same bits in every order",
          "[matmul_rope_forward][matmul_swiglu_forward][cuda][hopper]") {
    Fresh fresh;
    const RopeCase rope = fresh_rope(fresh, 64, true);
    INFO(text(rope));
    const Array qkv = rope_on_hopper(rope, 128, 3, true).first;
    CHECK(inequality(rope_on_hopper(rope, 256, fresh.seed % 100 + 4).first, qkv) == "");
    const SwigluCase swiglu{fresh.between(129, 160),   8 * fresh.between(9, 20),
                            8 * fresh.between(17, 24), true,
                            DType::bfloat16,           fresh.seed};
    INFO(text(swiglu));
    const CombinedOutcome first = swiglu_on_hopper(swiglu, 128, 3, true),
                          other = swiglu_on_hopper(swiglu, 256, fresh.seed % 100 + 4);
    CHECK(inequality(other.first, first.first) == "");
    CHECK(inequality(other.second, first.second) == "");
}

TEST_CASE("Hopper's combined kernels store once, without bank conflicts",
          "[matmul_rope_forward][matmul_swiglu_forward][cuda][hopper][lint]") {
    for (int tile : {128, 256}) {
        const emulator::Recorder recorder = record_hopper();
        const RopeCase rope{{1, 256, 4, 2, 64}, 64, true};
        CHECK(rope_on_hopper(rope, tile, 0).wrong == "");
        const SwigluCase swiglu{256, 256, 64, false};
        CHECK(swiglu_on_hopper(swiglu, tile, 0).wrong == "");
        // place_weight quantizes; the rest are the two kernels.
        std::vector<emulator::LaunchReport> launches;
        for (const emulator::LaunchReport& launch : recorder.launches())
            if (launch.kernel.find("hopper_product") != std::string::npos) launches.push_back(launch);
        INFO(emulator::markdown(launches));
        REQUIRE(launches.size() == 2);
        CHECK(launches[0].bytes_stored == 256 * 8 * 64 * 2);
        CHECK(launches[1].bytes_stored == 256 * 3 * 256 * 2);
        for (const emulator::LaunchReport& launch : launches) {
            CHECK(launch.tensor_core_flops == 2 * 256 * 512 * 64);
            CHECK(launch.bank_conflicts() == 0);
            CHECK(launch.shared_bytes <= 227 << 10);
        }
    }
}

// ---- what chooses them

namespace {

// Kernels by which a device computes, all their names.
template <typename Work>
std::string kernels_of(const Work& work) {
    emulator::Recorder recorder;
    work();
    std::string names;
    for (const emulator::LaunchReport& launch : recorder.launches())
        for (const char* name : {"hopper_product", "code_matmul", "tile_matmul", "swiglu_rows", "turn_rows"})
            if (launch.kernel.find(name) != std::string::npos)
                names += (names.empty() ? "" : " ") + std::string(name);
    return names;
}
std::string swiglu_kernels(Backend& backend, const SwigluCase& c) {
    std::string names;
    const std::string wrong = matmul_swiglu(backend, c, [&](const MatmulSwigluForward& a) {
                                  names = kernels_of([&] { backend.matmul_swiglu_forward(a); });
                              }).wrong;
    return names + wrong;
}
std::string rope_kernels(Backend& backend, const RopeCase& c) {
    std::string names;
    const std::string wrong = matmul_rope(backend, c, 0x1p-8, [&](const MatmulRopeForward& a) {
                                  names = kernels_of([&] { backend.matmul_rope_forward(a); });
                              }).wrong;
    return names + wrong;
}

}  // namespace

TEST_CASE("The flag -gemm hopper combines operations where it can",
          "[matmul_rope_forward][matmul_swiglu_forward][cuda][hopper]") {
    const HopperScope scope;
    Backend& dense = dense_hopper();
    CHECK(swiglu_kernels(dense, {5, 16, 64, true}) == "hopper_product");
    CHECK(swiglu_kernels(dense, {5, 20, 64, true}) == "hopper_product swiglu_rows");  // up begins at 40 bytes
    CHECK(swiglu_kernels(dense, {5, 16, 60, true}) == "tile_matmul swiglu_rows");
    CHECK(swiglu_kernels(emulated_device(), {5, 16, 64, false}) == "tile_matmul swiglu_rows");
    CHECK(swiglu_kernels(hopper_device(), {5, 16, 64, true}) == "code_matmul swiglu_rows");
    CHECK(rope_kernels(dense, {{1, 5, 2, 1, 32}, 64, true}) == "hopper_product");
    CHECK(rope_kernels(dense, {{1, 5, 2, 1, 16}, 64, true}) == "hopper_product turn_rows");
    CHECK(rope_kernels(hopper_device(), {{1, 5, 2, 1, 32}, 64, true}) == "code_matmul turn_rows");
}

TEST_CASE("An observer is told of a combined kernel as a whole", "[matmul_swiglu_forward][cuda][hopper]") {
    class Names final : public OperationObserver {
      public:
        void observe(const char* operation, const OperationCost& cost,
                     const std::function<void()>& compute) override {
            last = operation;
            last_cost = cost;
            compute();
        }
        std::string last;
        OperationCost last_cost;
    };
    const HopperScope scope;
    Backend& backend = dense_hopper();
    Names observer;
    const std::string wrong = matmul_swiglu(backend, {5, 16, 64, false}, [&](const MatmulSwigluForward& a) {
                                  backend.set_observer(&observer);
                                  backend.matmul_swiglu_forward(a);
                                  backend.set_observer(nullptr);
                              }).wrong;
    CHECK(wrong == "");
    CHECK(observer.last == "matmul_swiglu_forward");
    CHECK(observer.last_cost.flops == 2 * 5 * 32 * 64);
    CHECK(observer.last_cost.bytes == 2 * 5 * (16 + 32));
}
