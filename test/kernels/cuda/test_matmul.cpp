// Our own dense matmuls on the emulated device: all forms, types and tile sizes.
#include <cstdint>
#include <vector>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "test/kernels/cuda/matmul_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;
using CU_BACKEND::MatmulForm;
using CU_BACKEND::TileSize;

namespace {

// "" or what is wrong. Operands begin `shift` elements behind an aligned address.
std::string check_dense(MatmulForm form, const Extents& e, DType type, DType out_type, bool accumulate,
                        TileSize size, int64_t shift) {
    return dense_outcome(emulated_device(), {form, e, type, out_type, accumulate, shift},
                         [&](MatmulForm, const Tensor& out, const Tensor& a, const Tensor& b, bool) {
                             if (type == DType::bfloat16)
                                 matmul_bfloat16(emulated_stream(), form, out, a, b, accumulate, size);
                             else
                                 matmul_float32(emulated_stream(), form, out, a, b, accumulate);
                         })
        .wrong;
}

}  // namespace

TEST_CASE("our own bfloat16 matmuls take any shape", "[own_matmul][cuda]") {
    std::vector<Extents> extents = {{1, 1, 1},     {8, 8, 8},     {7, 64, 33},   {128, 64, 32},
                                    {130, 7, 100}, {64, 72, 136}, {3, 200, 129}, {136, 8, 24},
                                    {129, 65, 34}, {40, 136, 256}};
    extents = affordable(extents, 300000, [](const Extents& e) { return e.rows * e.columns * e.inner; });
    for (const Extents& e : extents)
        for (MatmulForm form : matmul_forms)
            for (DType out_type : {DType::float32, DType::bfloat16})
                for (int64_t shift : {0, 1}) {
                    INFO(name_of(form) << " " << e.rows << " x " << e.columns << ", " << e.inner << ", to "
                                       << train_qat::name_of(out_type) << ", shift " << shift);
                    const bool accumulate =
                        form == MatmulForm::tn && out_type == DType::float32 && e.rows % 8 == 0;
                    CHECK(check_dense(form, e, DType::bfloat16, out_type, accumulate, TileSize::automatic,
                                      shift) == "");
                }
}

TEST_CASE("our own bfloat16 matmuls with large tiles", "[own_matmul][cuda]") {
    std::vector<Extents> extents = {{264, 136, 40}, {16, 264, 104}, {520, 8, 8}};
    extents = affordable(extents, 100000, [](const Extents& e) { return e.rows * e.columns * e.inner; });
    for (const Extents& e : extents)
        for (MatmulForm form : matmul_forms)
            for (bool accumulate : {false, true}) {
                if (accumulate && form != MatmulForm::tn) continue;
                INFO(name_of(form) << " " << e.rows << " x " << e.columns << ", " << e.inner);
                CHECK(check_dense(form, e, DType::bfloat16, DType::float32, accumulate, TileSize::large, 0) ==
                      "");
                if (!accumulate)
                    CHECK(check_dense(form, e, DType::bfloat16, DType::bfloat16, false, TileSize::large, 0) ==
                          "");
            }
}

// More rows of tiles than a band has, and a last band that is not full.
TEST_CASE("every tile of the product belongs to one block", "[own_matmul][cuda]") {
    const Extents e{128 * 11 + 3, 64 * 3 + 8, 8};
    CHECK(check_dense(MatmulForm::nt, e, DType::bfloat16, DType::bfloat16, false, TileSize::small, 0) == "");
    CHECK(check_dense(MatmulForm::nt, {64 * 19 + 1, 130, 3}, DType::float32, DType::float32, false,
                      TileSize::automatic, 0) == "");
}

TEST_CASE("our own float32 matmuls take any shape", "[own_matmul][cuda]") {
    std::vector<Extents> extents = {{1, 1, 1},    {4, 4, 4},    {64, 64, 16},
                                    {65, 70, 17}, {7, 200, 33}, {132, 68, 64}};
    extents = affordable(extents, 300000, [](const Extents& e) { return e.rows * e.columns * e.inner; });
    for (const Extents& e : extents)
        for (MatmulForm form : matmul_forms)
            for (bool accumulate : {false, true})
                for (int64_t shift : {0, 1}) {
                    if (accumulate && form != MatmulForm::tn) continue;
                    INFO(name_of(form)
                         << " " << e.rows << " x " << e.columns << ", " << e.inner << ", shift " << shift);
                    CHECK(check_dense(form, e, DType::float32, DType::float32, accumulate,
                                      TileSize::automatic, shift) == "");
                }
}

TEST_CASE("our own matmuls have no races, in any order of threads", "[own_matmul][cuda]") {
    const Extents e{72, 40, 136};
    in_several_orders([&] {
        for (MatmulForm form : matmul_forms) {
            INFO(name_of(form));
            for (TileSize size : {TileSize::small, TileSize::large})
                CHECK(check_dense(form, e, DType::bfloat16, DType::float32, false, size, 0) == "");
            CHECK(check_dense(form, e, DType::bfloat16, DType::float32, false, TileSize::automatic, 1) == "");
            CHECK(check_dense(form, e, DType::float32, DType::float32, false, TileSize::automatic, 0) == "");
        }
    });
}

TEST_CASE("dense matmuls load each tile once, in whole sectors", "[cuda][own_matmul][lint]") {
    const Extents e{256, 192, 96};
    for (MatmulForm form : matmul_forms)
        for (const Tile& tile : matmul_tiles)
            for (DType out_type : {DType::bfloat16, DType::float32}) {
                INFO(name_of(form) << ", tiles of " << tile.rows);
                Random random(14);
                Bench bench(emulated_device());
                const Array a = random.normals(e.rows * e.inner, DType::bfloat16),
                            b = random.normals(e.columns * e.inner, DType::bfloat16);
                const bool tn = form == MatmulForm::tn, nt = form == MatmulForm::nt;
                const Tensor left =
                    bench.input("a", a, DType::bfloat16, {tn ? e.inner : e.rows, tn ? e.rows : e.inner});
                const Tensor right = bench.input("b", b, DType::bfloat16,
                                                 {nt ? e.columns : e.inner, nt ? e.inner : e.columns});
                const Tensor out = bench.output("out", out_type, {e.rows, e.columns});
                const emulator::LaunchReport launch = lint_matmul(e, tile, [&] {
                    matmul_bfloat16(emulated_stream(), form, out, left, right, false, tile.size);
                });
                CHECK(launch.bytes_loaded == left.bytes() * CU_BACKEND::blocks_for(e.columns, tile.columns) +
                                                 right.bytes() * CU_BACKEND::blocks_for(e.rows, tile.rows));
                CHECK(launch.bytes_stored == out.bytes());
                CHECK(launch.load_sectors == launch.ideal_load_sectors);
            }
}
