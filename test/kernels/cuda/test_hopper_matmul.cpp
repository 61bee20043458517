// Dense matmuls by Hopper's instructions on the emulated device: all forms, outputs, tails, splits and schedules; and what
// chooses them.
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/hopper_matmul/hopper_matmul.h"
#include "test/emulator/hopper_fixture.h"
#include "test/kernels/cuda/matmul_fixture.h"
#include "test/support/catch.h"
#include "test/support/errors.h"

using namespace train_qat;
using namespace train_qat::test;
using CU_BACKEND::MatmulForm;
using CU_BACKEND::plan_product;
using CU_BACKEND::ProductPlan;

namespace {

constexpr int multiprocessors = 8;  // of the emulated device
constexpr ProductPlan narrow{128, 1}, wide{256, 1};

struct Order {
    uint64_t schedule = 0;
    bool races = false;
};
Outcome on_hopper(const DenseProduct& product, const ProductPlan& plan, const Order& order = {}) {
    emulator::Settings settings = emulator::settings();
    settings.compute_capability = 90;
    settings.schedule_seed = order.schedule;
    settings.check_races = order.races;
    const emulator::SettingsScope scope(settings);
    return dense_outcome(
        hopper_device(), product,
        [&](MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
            hopper_matmul(device_of(hopper_device()), form, out, a, b, accumulate, plan);
        });
}

std::string text(const DenseProduct& p) {
    return std::string(test::name_of(p.form)) + " " + std::to_string(p.extents.rows) + " x " +
           std::to_string(p.extents.columns) + ", " + std::to_string(p.extents.inner) + ", to " +
           train_qat::name_of(p.out_type) + (p.accumulate ? ", accumulated" : "");
}

// Multiples of 8 where rows of memory must be whole 16 bytes, anything elsewhere.
Extents fresh_extents(Fresh& fresh, MatmulForm form, int64_t most_rows, int64_t most_columns,
                      int64_t most_inner) {
    const auto eights = [&](int64_t most) { return 8 * fresh.between(1, most / 8); };
    if (form == MatmulForm::tn)
        return {eights(most_rows), eights(most_columns), fresh.between(1, most_inner)};
    return {fresh.between(1, most_rows), eights(most_columns), eights(most_inner)};
}

ProductPlan plan_of(const DenseProduct& p) {
    const Extents& e = p.extents;
    return plan_product(e.rows, e.columns, e.inner, p.out_type == DType::float32, multiprocessors);
}

}  // namespace

TEST_CASE("Hopper's matmuls are right in all forms, types, tails and schedules",
          "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    uint64_t schedule = 0;
    for (MatmulForm form : matmul_forms)
        for (const ProductPlan& plan : {narrow, wide})
            for (DType out_type : {DType::bfloat16, DType::float32})
                for (bool accumulate : {false, true}) {
                    if (accumulate && (out_type != DType::float32 || form != MatmulForm::tn)) continue;
                    const DenseProduct p{form,
                                         fresh_extents(fresh, form, 200, 320, 300),
                                         DType::bfloat16,
                                         out_type,
                                         accumulate,
                                         0,
                                         fresh.seed};
                    INFO(text(p) << ", schedule " << schedule << ", numbers from " << fresh.seed
                                 << (plan.tile_columns == 128 ? ", narrow" : ", wide"));
                    CHECK(on_hopper(p, plan, {schedule}).wrong == "");
                    schedule = (schedule + 1) % 5;
                }
}

TEST_CASE("Hopper's matmuls take one row and the smallest matrices", "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    for (MatmulForm form : matmul_forms)
        for (DType out_type : {DType::bfloat16, DType::float32}) {
            const int64_t one = form == MatmulForm::tn ? 8 : 1, inner = form == MatmulForm::tn ? 1 : 8;
            for (const Extents& e : {Extents{one, 8, inner}, fresh_extents(fresh, form, 8, 300, 200)}) {
                const DenseProduct p{form, e, DType::bfloat16, out_type, false, 0, fresh.seed};
                INFO(text(p) << ", numbers from " << fresh.seed);
                CHECK(on_hopper(p, plan_of(p)).wrong == "");
            }
        }
}

// More slices than stages, more tiles than multiprocessors, rows of tiles beyond a band.
TEST_CASE("Hopper's matmuls go round their ring and from tile to tile", "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    const DType type = DType::bfloat16;
    std::vector<DenseProduct> products = {
        {MatmulForm::nt, {fresh.between(1153, 1300), 8 * fresh.between(17, 20), 64}, type, type},
        {MatmulForm::nn, {fresh.between(129, 200), 520, 8 * fresh.between(57, 64)}, type, type},
        {MatmulForm::tn,
         {264, 8 * fresh.between(49, 60), fresh.between(520, 600)},
         type,
         DType::float32,
         true}};
    products = affordable(products, 10000000, [](const DenseProduct& p) {
        return p.extents.rows * p.extents.columns * p.extents.inner;
    });
    for (DenseProduct& p : products) {
        p.numbers = fresh.seed;
        INFO(text(p) << ", numbers from " << fresh.seed);
        for (const ProductPlan& plan : {narrow, wide})
            CHECK(on_hopper(p, plan, {fresh.seed % 7}).wrong == "");
    }
}

TEST_CASE("Hopper's matmuls have no races and give the same bits in every order",
          "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    for (MatmulForm form : matmul_forms)
        for (DType out_type : {DType::bfloat16, DType::float32}) {
            const bool accumulate = form == MatmulForm::tn && out_type == DType::float32;
            // The same extents with operands of either order; three slices, one of them with a tail.
            const DenseProduct p{form,
                                 {8 * fresh.between(17, 20), 8 * fresh.between(17, 20), 136},
                                 DType::bfloat16,
                                 out_type,
                                 accumulate,
                                 0,
                                 fresh.seed};
            INFO(text(p) << ", numbers from " << fresh.seed);
            const Outcome first = on_hopper(p, narrow, {3, true});
            CHECK(first.wrong == "");
            CHECK(inequality(on_hopper(p, narrow, {fresh.seed % 100 + 4}).values, first.values) == "");
            CHECK(inequality(on_hopper(p, wide, {0}).values, first.values) == "");
        }
}

// ---- sums that are divided among blocks

TEST_CASE("long sums of few tiles are divided, by shape and multiprocessors alone",
          "[own_matmul][cuda][hopper]") {
    // Shapes of which an H100 told which number of splits was fastest.
    constexpr int h100 = 132;
    const auto splits = [&](int64_t rows, int64_t columns) {
        return plan_product(rows, columns, 32768, true, h100).splits;
    };
    CHECK(splits(2304, 768) == 2);
    CHECK(splits(4096, 768) == 4);
    CHECK(splits(50304, 768) == 1);
    for (int64_t inner : {1, 64, 768, 100000})
        CHECK(plan_product(2304, 768, inner, false, h100).splits == 1);  // no float32 sums
    CHECK(plan_product(768, 768, 64, true, h100).splits == 1);           // no two slices
    CHECK(plan_product(65536, 65536, 32768, true, h100).splits == 1);    // no room for two of it
    CHECK(plan_product(32768, 2304, 768, false, h100).tile_columns == 256);
    CHECK(plan_product(2048, 768, 768, false, h100).tile_columns == 128);
}

TEST_CASE("divided sums are right, and have the same bits in every order", "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    for (MatmulForm form : matmul_forms)
        for (bool accumulate : {false, true}) {
            if (accumulate && form != MatmulForm::tn) continue;
            const Extents e{8 * fresh.between(1, 40), 8 * fresh.between(1, 40), 8 * fresh.between(41, 90)};
            const DenseProduct p{form, e, DType::bfloat16, DType::float32, accumulate, 0, fresh.seed};
            const auto slices = static_cast<int>((e.inner + 63) / 64);
            const ProductPlan plan{accumulate ? 256 : 128, static_cast<int>(fresh.between(2, slices))};
            INFO(text(p) << ", in " << plan.splits << " parts, numbers from " << fresh.seed);
            const emulator::Recorder recorder = record_hopper();
            const Outcome first = on_hopper(p, plan, {1, true});
            CHECK(first.wrong == "");
            CHECK(recorder.launches().size() == 2);
            CHECK(inequality(on_hopper(p, plan, {fresh.seed % 100 + 2}).values, first.values) == "");
        }
}

TEST_CASE("a weight gradient of few tiles over many tokens is divided", "[own_matmul][cuda][hopper]") {
    Fresh fresh;
    const Extents e{8 * fresh.between(1, 20), 8 * fresh.between(1, 12), fresh.between(10300, 12000)};
    const DenseProduct p{MatmulForm::tn, e, DType::bfloat16, DType::float32, true, 0, fresh.seed};
    INFO(text(p) << ", numbers from " << fresh.seed);
    REQUIRE(plan_of(p).splits > 1);
    CHECK(on_hopper(p, plan_of(p), {1}).wrong == "");
    CHECK(error_of([&] {
              on_hopper({MatmulForm::nt, {8, 8, 640}, DType::bfloat16, DType::bfloat16}, {128, 2});
          }) == "hopper_matmul: has no such tiles, or not so many splits");
}

// ---- what the kernels ask of the machine

TEST_CASE("Hopper's matmuls load what they must, without bank conflicts",
          "[cuda][own_matmul][hopper][lint]") {
    const Extents e{256, 512, 192};  // four tiles, or eight
    for (MatmulForm form : matmul_forms)
        for (const ProductPlan& plan : {narrow, wide})
            for (DType out_type : {DType::bfloat16, DType::float32})
                for (bool accumulate : {false, true}) {
                    if (accumulate && (form != MatmulForm::tn || out_type != DType::float32)) continue;
                    const DenseProduct p{form, e, DType::bfloat16, out_type, accumulate};
                    const emulator::Recorder recorder = record_hopper();
                    CHECK(on_hopper(p, plan).wrong == "");
                    REQUIRE(recorder.launches().size() == 1);
                    const emulator::LaunchReport& launch = recorder.launches()[0];
                    INFO(text(p) << "\n" << emulator::markdown(recorder.launches()));
                    const int64_t tile_columns = plan.tile_columns;
                    const int64_t operands =
                        e.rows * e.inner * (e.columns / tile_columns) + e.columns * e.inner * (e.rows / 128);
                    CHECK(launch.bytes_loaded == 2 * operands);
                    CHECK(launch.bytes_stored == e.rows * e.columns * size_of(out_type));
                    CHECK(launch.tensor_core_flops == 2 * e.rows * e.columns * e.inner);
                    CHECK(launch.bank_conflicts() == 0);
                    CHECK(launch.shared_bytes <= 227 << 10);
                }
}

// ---- what chooses them

TEST_CASE("The flag -gemm hopper chooses Hopper's kernels, and says once what it leaves to others",
          "[own_matmul][cuda][hopper]") {
    std::vector<std::string> lines;
    CudaOptions options;
    options.report = [&](const std::string& line) { lines.push_back(line); };
    const std::unique_ptr<Backend> backend = make_hopper_device(options);
    const HopperScope scope;
    for (int64_t N : {24, 20, 20}) {
        const int64_t M = 5, K = 64;
        Random random(3);
        Bench bench(*backend);
        const HostParameter host = random_parameter(random, N, K, Grid::none, 0);
        const ComputeWeight& weight = place_weight(bench, host, DType::bfloat16);
        const Tensor x = bench.input("x", random.normals(M * K, DType::bfloat16), DType::bfloat16, {M, K}),
                     dz = bench.input("dz", random.normals(M * N, DType::bfloat16), DType::bfloat16, {M, N}),
                     z = bench.output("z", DType::float32, {M, N}),
                     dx = bench.output("dx", DType::bfloat16, {M, K}),
                     dq = bench.output("dq", DType::float32, {N, K});
        emulator::Recorder recorder;
        backend->matmul_forward({.z = z, .x = x, .weight = weight});
        backend->matmul_input_gradient({.dx = dx, .dz = dz, .weight = weight});
        backend->matmul_weight_gradient({.dq = dq, .dz = dz, .x = x});
        REQUIRE(recorder.launches().size() == 3);
        // float32 rows of 20 are whole 16 bytes, those of bfloat16 are not.
        for (size_t i = 0; i < 3; ++i)
            CHECK((recorder.launches()[i].kernel.find("hopper_product") != std::string::npos) ==
                  (N == 24 || i == 0));
        CHECK(bench.damage() == "");
    }
    REQUIRE(lines.size() == 2);
    const std::string end = ": tensor maps need rows of whole 16 bytes: by mma kernels";
    CHECK(lines[0] == "-gemm hopper: matmul of 5 x 20 and 20 x 64" + end);
    CHECK(lines[1] == "-gemm hopper: matmul of 5 x 20 and 5 x 64" + end);
}

TEST_CASE("Hopper's matmuls refuse what tensor maps cannot take", "[own_matmul][cuda][hopper]") {
    const auto refusal = [](MatmulForm form, const Extents& e, DType type, DType out_type, int64_t shift,
                            bool accumulate = false) {
        const HopperScope scope;
        std::string message;
        dense_outcome(hopper_device(), {form, e, type, out_type, accumulate, shift},
                      [&](MatmulForm, const Tensor& out, const Tensor& a, const Tensor& b, bool) {
                          message = CU_BACKEND::hopper_product_refusal(out, a, b, accumulate);
                      });
        return message;
    };
    const DType bf16 = DType::bfloat16, fp32 = DType::float32;
    const std::string rows = "tensor maps need rows of whole 16 bytes";
    CHECK(refusal(MatmulForm::nt, {3, 8, 8}, bf16, bf16, 0) == "");
    CHECK(refusal(MatmulForm::nt, {3, 12, 8}, bf16, bf16, 0) == rows);
    CHECK(refusal(MatmulForm::nt, {3, 12, 8}, bf16, fp32, 0) == "");
    CHECK(refusal(MatmulForm::nt, {3, 8, 12}, bf16, bf16, 0) == rows);
    CHECK(refusal(MatmulForm::nt, {3, 8, 8}, bf16, bf16, 1) == rows);
    CHECK(refusal(MatmulForm::tn, {8, 8, 3}, bf16, fp32, 0, true) == "");
    CHECK(refusal(MatmulForm::tn, {12, 8, 3}, bf16, fp32, 0) == rows);
    CHECK(refusal(MatmulForm::nt, {3, 8, 8}, fp32, fp32, 0) == "operands must be bfloat16");
    CHECK(refusal(MatmulForm::tn, {8, 8, 3}, bf16, bf16, 0, true) == "only float32 sums can go on");
}

TEST_CASE("The flag -gemm is refused where the device or the program has no such kernels",
          "[own_matmul][cuda][hopper]") {
    CudaOptions options;
    options.gemm = DenseGemm::hopper;
    CHECK(error_of([&] { make_emulated_cuda_backend(options); }) ==
          "-gemm hopper: needs a card of compute capability 9.0, and this is emulated CUDA device, 8.0; use "
          "auto");
    options.gemm = DenseGemm::cublaslt;  // which the emulated device never has
    CHECK(error_of([&] { make_emulated_cuda_backend(options); }) ==
          "-gemm cublaslt: this program was built without cuBLASLt; give -gemm auto");
}
