// The fused matmuls by Hopper's instructions on the emulated device: all widths of codes, tails, rings that wrap, schedules;
// and what chooses them. test_fakequant_matmul.cpp runs them on its shapes too.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/weights/weight_layout.h"
#include "test/emulator/hopper_fixture.h"
#include "test/kernels/cuda/codes_fixture.h"
#include "test/support/catch.h"

using namespace train_qat;
using namespace train_qat::test;
using CU_BACKEND::CodePlan;

namespace {

constexpr Grid widths[] = {Grid::binary, Grid::quaternary, Grid::integer4, Grid::integer8};

// Every kernel, and blocks that share a sum.
constexpr CodePlan few{CodePlan::few, 1}, shared_by_2{CodePlan::few, 2}, shared_by_3{CodePlan::few, 3},
    medium{CodePlan::medium, 1}, many{CodePlan::many, 1};
constexpr CodePlan plans[] = {few, shared_by_3, medium, many};

std::string text(const Plan& plan) {
    return plan ? std::to_string(plan->tokens) + " tokens, " + std::to_string(plan->splits) + " splits"
                : "the plan of the shape";
}

// "" or what is wrong with both products, in one schedule, with races looked for or not.
std::string check_both(uint64_t numbers, const Shape& s, Grid grid, int64_t group, const Plan& plan,
                       uint64_t schedule, bool races = false) {
    emulator::Settings settings = emulator::settings();
    settings.schedule_seed = schedule;
    settings.check_races = races;
    const emulator::SettingsScope scope(settings);
    Random random(numbers);
    const HostParameter host = random_weight(random, s.N, s.K, grid, group);
    const Array x = random.normals(s.M * s.K, DType::bfloat16),
                dz = random.normals(s.M * s.N, DType::bfloat16);
    const std::string forward = hopper_outcome(host, s, true, x, plan).wrong,
                      backward = hopper_outcome(host, s, false, dz, plan).wrong;
    return (forward.empty() ? "" : "forward: " + forward) +
           (backward.empty() ? "" : "input gradient: " + backward);
}

}  // namespace

TEST_CASE("Hopper's fused matmuls are right at all widths, tails and schedules",
          "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    uint64_t schedule = 0;
    for (Grid grid : widths)
        for (int64_t group : {0, 32, 64, 128})
            for (const CodePlan& plan : plans) {
                const int64_t K =
                    group == 0 ? 8 * fresh.between(1, 40) : group * fresh.between(2, 320 / group);
                const Shape s{fresh.between(1, 90), 8 * fresh.between(1, 20), K};
                INFO(text(s) << ", " << reference::name_of(grid) << " group " << group << ", schedule "
                             << schedule << ", " << text(plan));
                CHECK(check_both(fresh.seed, s, grid, group == 0 ? K : group, plan, schedule) == "");
                schedule = (schedule + 1) % 6;
            }
}

TEST_CASE("Hopper's fused matmuls take one token and the smallest weight",
          "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    for (Grid grid : reference::quantized_grids())
        for (const Shape& s :
             {Shape{1, 8, 8}, Shape{1, 8 * fresh.between(1, 30), 8 * fresh.between(1, 30)}}) {
            INFO(text(s) << ", " << reference::name_of(grid));
            CHECK(check_both(fresh.seed, s, grid, s.K, {}, 1) == "");
        }
}

// More slices than the ring has stages, in an odd and an even number; more tiles than multiprocessors, and than buffers.
TEST_CASE("Hopper's fused matmuls go round their ring and from tile to tile",
          "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    const int64_t slices = fresh.between(11, 12);
    std::vector<Shape> shapes = {{fresh.between(193, 256), 8 * fresh.between(49, 60), 64 * slices - 8},
                                 {fresh.between(193, 256), 64 * (23 - slices), 8 * fresh.between(49, 60)}};
    shapes = affordable(shapes, 20000000, [](const Shape& s) { return s.M * s.N * s.K; });
    uint64_t schedule = 0;
    for (const Shape& s : shapes)
        for (int i = 0; i < 2; ++i, ++schedule) {
            INFO(text(s) << ", schedule " << schedule);
            CHECK(check_both(fresh.seed, s, widths[schedule], s.K, few, schedule) == "");
        }
    const Shape wide{fresh.between(513, 600), 8 * fresh.between(33, 40), 328};
    INFO(text(wide));
    CHECK(check_both(fresh.seed, wide, Grid::integer4, wide.K, many, 3) == "");
    CHECK(check_both(fresh.seed, wide, Grid::quaternary, wide.K, medium, 4) == "");
}

// As in generation and in small batches: few tokens, and inner dimensions that blocks share.
TEST_CASE("Hopper's fused matmuls share the inner dimension of few tokens among blocks",
          "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    uint64_t schedule = 0;
    for (int64_t M : {1, 3, 17, 64, 200})
        for (Grid grid : widths) {
            const bool grouped = (M + static_cast<int64_t>(grid)) % 2 == 0;
            // The last slice, and the last split, are not whole.
            const Shape s{M, 8 * fresh.between(3, 14),
                          grouped ? 32 * fresh.between(17, 24) : 8 * fresh.between(65, 100)};
            const Plan plan = M % 3 == 0 ? Plan(shared_by_2) : Plan();
            INFO(text(s) << ", " << reference::name_of(grid) << (grouped ? ", groups" : "") << ", schedule "
                         << schedule << ", " << text(plan));
            CHECK(check_both(fresh.seed, s, grid, grouped ? 32 : s.K, plan, schedule) == "");
            schedule = (schedule + 1) % 6;
        }
}

TEST_CASE("Plans of Hopper's fused matmuls use the card", "[fakequant_matmul][cuda][hopper]") {
    using CU_BACKEND::code_plan;
    constexpr int64_t blocks = 132;  // multiprocessors of an H100
    CHECK(code_plan(32768, 2304, 768, blocks) == many);
    CHECK(code_plan(512, 4096, 1024, blocks) == medium);
    CHECK(code_plan(64, 4096, 1024, blocks) == few);
    CHECK(code_plan(1, 1024, 4096, blocks).splits > 1);
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    for (int i = 0; i < 300; ++i) {
        const int64_t M = fresh.between(1, i % 2 == 0 ? 64 : 5000), N = 8 * fresh.between(1, 700),
                      K = 8 * fresh.between(1, 1000);
        const CodePlan plan = code_plan(M, N, K, blocks);
        INFO(text(Shape{M, N, K}) << ": " << text(plan));
        CHECK(plan == code_plan(M, N, K, blocks));
        CHECK(plan.splits >= 1);
        if (plan.splits == 1) continue;
        CHECK(plan.tokens == CodePlan::few);
        CHECK(plan.splits * 2 <= (K + 63) / 64);
        CHECK(plan.splits * ((M + 63) / 64) * ((N + 63) / 64) <= blocks);
    }
}

TEST_CASE("Hopper's fused matmuls have no races and give the same bits in every order",
          "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    const Shape s{fresh.between(65, 100), 8 * fresh.between(17, 24), 32 * fresh.between(7, 9)};
    for (int i = 0; i < 4; ++i) CHECK(check_both(fresh.seed, s, widths[i], 32, plans[i], 4, true) == "");
    CHECK(check_both(fresh.seed, s, Grid::integer4, s.K, few, 5, true) == "");
    Random random(fresh.seed);
    const HostParameter host = random_weight(random, s.N, s.K, Grid::integer4, s.K);
    for (bool forward : {true, false}) {
        const Array left = random.normals(s.M * (forward ? s.K : s.N), DType::bfloat16);
        for (const CodePlan& plan : plans) {
            const Array first = hopper_outcome(host, s, forward, left, plan).values;
            for (uint64_t schedule : {5, 6}) {
                emulator::Settings settings = emulator::settings();
                settings.schedule_seed = schedule;
                const emulator::SettingsScope scope(settings);
                INFO(text(plan) << ", schedule " << schedule);
                CHECK(inequality(hopper_outcome(host, s, forward, left, plan).values, first) == "");
            }
        }
    }
}

// One row of an identity picks one column of the levels: they must arrive as they are, each at its place.
TEST_CASE("levels reach Hopper's tensor cores exactly", "[fakequant_matmul][cuda][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    const Shape s{96, 96, 96};
    Array identity(s.M * s.K, 0.0);
    for (int64_t i = 0; i < s.M; ++i) identity[i * s.K + i] = 1;
    for (Grid grid : reference::quantized_grids())
        for (int64_t group : {int64_t{32}, s.K}) {
            Random random(fresh.seed);
            const HostParameter host = random_weight(random, s.N, s.K, grid, group);
            const Array q = host.quantized(DType::bfloat16).q;
            Array transposed(q.size());
            for (int64_t n = 0; n < s.N; ++n)
                for (int64_t k = 0; k < s.K; ++k) transposed[k * s.N + n] = q[n * s.K + k];
            INFO(reference::name_of(grid) << " group " << group);
            CHECK(inequality(hopper_outcome(host, s, true, identity, {}).values, transposed) == "");
            CHECK(inequality(hopper_outcome(host, s, false, identity, {}).values, q) == "");
        }
}

TEST_CASE("a NaN scale of a group shows on Hopper in what its row takes part in",
          "[fakequant_matmul][cuda][hopper]") {
    const HopperScope scope;
    const Shape s{5, 16, 160};  // the last slice of K is half outside
    for (Grid grid : {Grid::binary, Grid::integer4}) {
        Random random(10);
        const HostParameter host = random_weight(random, s.N, s.K, grid, 32);
        Bench bench(hopper_device());
        const ComputeWeight weight = place_codes(bench, host);
        const float nan = std::nanf("");
        bench.backend().copy_to_device(CU_BACKEND::layout_of(weight).group_scale + 15 * 5 + 4, &nan,
                                       sizeof nan);
        const Tensor z = bench.output("z", DType::bfloat16, {s.M, s.N}),
                     dx = bench.output("dx", DType::bfloat16, {s.M, s.K});
        const Array x = random.normals(s.M * s.K, DType::bfloat16),
                    dz = random.normals(s.M * s.N, DType::bfloat16);
        bench.backend().matmul_forward(
            {.z = z, .x = bench.input("x", x, DType::bfloat16, {s.M, s.K}), .weight = weight});
        bench.backend().matmul_input_gradient(
            {.dx = dx, .dz = bench.input("dz", dz, DType::bfloat16, {s.M, s.N}), .weight = weight});
        const Array z_out = bench.read(z), dx_out = bench.read(dx);
        for (int64_t i = 0; i < s.M * s.N; ++i) REQUIRE(std::isnan(z_out[i]) == (i % s.N == 15));
        for (int64_t i = 0; i < s.M * s.K; ++i) REQUIRE(std::isnan(dx_out[i]) == (i % s.K / 32 == 4));
    }
}

// ---- what the kernels ask of the machine

TEST_CASE("Hopper's fused matmuls load what they must, without bank conflicts",
          "[cuda][fakequant_matmul][hopper][lint]") {
    const int64_t M = 64, N = 256, K = 256;
    for (const CodePlan& plan : {few, shared_by_2, medium})
        for (Grid grid : widths)
            for (bool forward : {true, false}) {
                INFO(reference::name_of(grid)
                     << (forward ? ", forward, " : ", input gradient, ") << text(plan));
                Random random(15);
                const HostParameter host = random_weight(random, N, K, grid, K);
                const Array left = random.normals(M * K, DType::bfloat16);
                const emulator::Recorder recorder = record_hopper();
                CHECK(hopper_outcome(host, {M, N, K}, forward, left, plan).wrong == "");
                REQUIRE(recorder.launches().size() == (plan.splits == 1 ? 1 : 2));
                INFO(emulator::markdown(recorder.launches()));
                const emulator::LaunchReport& launch = recorder.launches()[0];
                const int64_t features = CU_BACKEND::code_features(plan.tokens);
                // A row of a tile has 8 bytes of 1-bit codes, and comes with the next 8, where there are some.
                const int64_t codes = N * K * code_bits(grid) / 8;
                const int64_t again = grid == Grid::binary ? codes * 3 / 4 : 0;
                CHECK(launch.bytes_loaded == N / features * M * K * 2 + codes + again);
                CHECK(launch.tensor_core_flops == 2 * plan.tokens * N * K);
                CHECK(launch.bank_conflicts() == 0);
                CHECK(launch.shared_bytes <= 227 << 10);
                if (plan.splits == 1) {
                    CHECK(launch.bytes_stored == M * N * 2);
                    continue;
                }
                const emulator::LaunchReport& sum = recorder.launches()[1];
                CHECK(launch.bytes_stored == plan.splits * M * N * 4);
                CHECK(launch.store_sectors == launch.ideal_store_sectors);
                CHECK(sum.bytes_loaded == plan.splits * M * N * 4);
                CHECK(sum.load_sectors == sum.ideal_load_sectors);
                CHECK(sum.bytes_stored == M * N * 2);
            }
}

// ---- what chooses them

TEST_CASE("The flag -qat_gemm hopper chooses Hopper's kernels, and says once what it leaves to others",
          "[fakequant_matmul][cuda][hopper]") {
    std::vector<std::string> lines;
    CudaOptions options;
    options.report = [&](const std::string& line) { lines.push_back(line); };
    const std::unique_ptr<Backend> backend = make_hopper_device(options);
    const HopperScope scope;
    for (int64_t N : {24, 20, 20}) {
        const int64_t K = 64;
        Random random(3);
        Bench bench(*backend);
        const HostParameter host = random_weight(random, N, K, Grid::integer4, K);
        const ComputeWeight& weight = place_weight(bench, host, DType::bfloat16);
        REQUIRE(weight.codes == Grid::integer4);
        const Tensor x = bench.input("x", random.normals(5 * K, DType::bfloat16), DType::bfloat16, {5, K}),
                     z = bench.output("z", DType::bfloat16, {5, N}),
                     dx = bench.output("dx", DType::bfloat16, {5, K});
        emulator::Recorder recorder;
        backend->matmul_forward({.z = z, .x = x, .weight = weight});
        backend->matmul_input_gradient({.dx = dx, .dz = z, .weight = weight});
        REQUIRE(recorder.launches().size() == 2);
        for (const emulator::LaunchReport& launch : recorder.launches())
            CHECK((launch.kernel.find("code_matmul") != std::string::npos) == (N == 24));
    }
    REQUIRE(lines.size() == 1);
    CHECK(lines[0] ==
          "-qat_gemm hopper: matmul 20 x 64: tensor maps need outputs and inputs that are multiples of 8: "
          "fused");
}

TEST_CASE("The flag -qat_gemm hopper is refused on other cards", "[fakequant_matmul][cuda][hopper]") {
    CudaOptions options;
    options.qat_gemm = QatGemm::hopper;
    std::string message;
    try {
        make_emulated_cuda_backend(options);
    } catch (const std::runtime_error& error) {
        message = error.what();
    }
    CHECK(message ==
          "-qat_gemm hopper: needs a card of compute capability 9.0, and this is emulated CUDA device, 8.0; "
          "use "
          "auto");
}
