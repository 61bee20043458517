// The CPU's matmuls by each unit that computes them: all small shapes, and matrix tiles by their emulation, which every CPU
// that multiplies bfloat16 at all can run.
#include <cmath>
#include <memory>

#include "kernels/cpu/platform/matrix_tiles.h"
#include "kernels/cpu/products/transpose.h"
#include "test/kernels/cpu/units_under_test.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Shape {
    int64_t rows, inner, columns;
};

Array transposed(const Array& matrix, int64_t rows, int64_t columns) {
    Array result(matrix.size());
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) result[j * rows + i] = matrix[i * columns + j];
    return result;
}

ComputeWeight& placed(Bench& bench, int64_t rows, int64_t columns, const Array& values, DType type) {
    HostParameter host;
    host.rows = rows, host.columns = columns;
    host.master = values;
    return place_weight(bench, host, type);
}

// The product of two random matrices in all three forms of a linear layer: "" or what is wrong.
std::string wrong_products(Backend& backend, DType type, const Shape& shape) {
    const auto [rows, inner, columns] = shape;
    Random random(static_cast<uint64_t>((rows * 1000 + inner) * 1000 + columns));
    const Array left = random.normals(rows * inner, type), right = random.normals(inner * columns, type);
    const reference::Result expected = reference::matmul_input_gradient(left, right, rows, inner, columns);

    Bench bench(backend);
    const Tensor forward = bench.output("forward", DType::float32, {rows, columns});
    const Tensor input_gradient = bench.output("input gradient", type, {rows, columns});
    const Tensor weight_gradient = bench.output("weight gradient", DType::float32, {rows, columns});
    const Tensor x = bench.input("x", left, type, {rows, inner});
    backend.matmul_forward(
        {.z = forward,
         .x = x,
         .weight = placed(bench, columns, inner, transposed(right, inner, columns), type)});
    backend.matmul_input_gradient(
        {.dx = input_gradient, .dz = x, .weight = placed(bench, inner, columns, right, type)});
    backend.matmul_weight_gradient(
        {.dq = weight_gradient,
         .dz = bench.input("dz", transposed(left, rows, inner), type, {inner, rows}),
         .x = bench.input("w", right, type, {inner, columns})});
    std::string wrong = bench.damage();
    for (const Tensor& result : {forward, input_gradient, weight_gradient})
        wrong += difference(bench.read(result), expected, result.dtype, float32_sum(inner));
    return wrong.empty() ? ""
                         : std::string(name_of(type)) + " M " + std::to_string(rows) + " K " +
                               std::to_string(inner) + " N " + std::to_string(columns) + ": " + wrong;
}

}  // namespace

TEST_CASE("matrix tiles give the products of vector registers, with the same bits for any number of threads",
          "[matmul_units]") {
    std::vector<Shape> shapes = {{1, 1, 1},    {3, 2, 5},     {65, 63, 1},    {64, 31, 16},  {17, 33, 127},
                                 {96, 64, 64}, {33, 65, 100}, {2, 257, 96},   {48, 160, 80}, {7, 1000, 40},
                                 {65, 63, 63}, {16, 32, 16},  {193, 96, 577}, {31, 1700, 90}};
    Random random(7);
    for (int i = 0; i < 4; ++i)
        shapes.push_back({random.integer(1, 140), random.integer(1, 140), random.integer(1, 140)});
    for (const UnitUnderTest& unit : units_under_test())
        for (int threads : {1, 3}) {
            const std::unique_ptr<Backend> backend = unit.make(threads);
            INFO(unit.name << ", " << threads << " threads");
            for (DType type : {DType::float32, DType::bfloat16})
                for (const Shape& shape : shapes)
                    if (backend->supports(type)) CHECK(wrong_products(*backend, type, shape) == "");
        }
}

TEST_CASE("the level of instructions can be chosen by its name, if this processor has it", "[matmul_units]") {
    CHECK(find_cpu_level("").runs_here());
    for (const CpuLevel& level : cpu_levels()) {
        if (level.runs_here())
            CHECK(find_cpu_level(level.name).name == std::string(level.name));
        else
            CHECK_THROWS_WITH(find_cpu_level(level.name), Catch::Matchers::Contains(level.name));
    }
    std::string absent;
    for (const CpuLevel& level : cpu_levels())
        if (!level.runs_here()) absent += std::string(" ") + level.name;
    if (!absent.empty()) WARN("skipped, for this processor lacks them: levels" << absent);
    CHECK_THROWS_WITH(find_cpu_level("mmx"), Catch::Matchers::Contains("TRAIN_QAT_CPU_LEVEL=mmx"));
}

TEST_CASE("what is not a number passes through a matmul, and only to its row", "[matmul_units]") {
    const float nan = std::nanf("");
    for (const UnitUnderTest& unit : units_under_test()) {
        INFO(unit.name);
        const std::unique_ptr<Backend> made = unit.make(2);
        Backend& backend = *made;
        if (!backend.supports(DType::bfloat16)) continue;
        const int64_t rows = 35, inner = 37, columns = 5;
        Bench bench(backend);
        Array x(static_cast<size_t>(rows * inner), 1.0);
        x[static_cast<size_t>(33 * inner + 36)] = nan;
        const Tensor z = bench.output("z", DType::float32, {rows, columns});
        backend.matmul_forward(
            {.z = z,
             .x = bench.input("x", x, DType::bfloat16, {rows, inner}),
             .weight = placed(bench, columns, inner, Array(static_cast<size_t>(columns * inner), 1.0),
                              DType::bfloat16)});
        const Array actual = bench.read(z);
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t n = 0; n < columns; ++n)
                CHECK(std::isnan(actual[static_cast<size_t>(m * columns + n)]) == (m == 33));
    }
}

TEST_CASE("squares are transposed between any strides", "[matmul_units]") {
    std::vector<uint32_t> source(16 * 19), turned(16 * 23, 7);
    for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint32_t>(1000 + i);
    transpose_square(turned.data(), 23, source.data(), 19);
    for (size_t i = 0; i < 16; ++i)
        for (size_t j = 0; j < 23; ++j) CHECK(turned[i * 23 + j] == (j < 16 ? source[j * 19 + i] : 7));
}

TEST_CASE("matrix tiles multiply pairs of bfloat16", "[matmul_units]") {
    Random random(3);
    const Array left = random.normals(tile_rows * tile_depth, DType::bfloat16),
                right = random.normals(tile_depth * tile_columns, DType::bfloat16);
    std::vector<bfloat16> a, b(right.size());
    for (double value : left) a.push_back(bfloat16(static_cast<float>(value)));
    for (int64_t k = 0; k < tile_depth; ++k)
        for (int64_t n = 0; n < tile_columns; ++n)
            b[static_cast<size_t>(k / 2 * 2 * tile_columns + 2 * n + k % 2)] =
                static_cast<float>(right[static_cast<size_t>(k * tile_columns + n)]);
    const auto check = [&]<typename Tiles>() {
        std::vector<float> sums(tile_rows * tile_columns, 3.0f);
        Tiles::configure();
        Tiles::template load<2>(sums.data(), tile_row_bytes);
        Tiles::template load<5>(a.data(), tile_row_bytes);
        Tiles::template load<7>(b.data(), tile_row_bytes);
        Tiles::template multiply_add<2, 5, 7>();
        Tiles::template store<2>(sums.data(), tile_row_bytes);
        Tiles::release();
        for (int64_t m = 0; m < tile_rows; ++m)
            for (int64_t n = 0; n < tile_columns; ++n) {
                double expected = 3;
                for (int64_t k = 0; k < tile_depth; ++k)
                    expected += left[static_cast<size_t>(m * tile_depth + k)] *
                                right[static_cast<size_t>(k * tile_columns + n)];
                CHECK(std::fabs(sums[static_cast<size_t>(m * tile_columns + n)] - expected) < 1e-4);
            }
    };
    check.operator()<EmulatedMatrixTiles>();
#if defined(__x86_64__)
    if (may_use_matrix_tiles()) check.operator()<MatrixTiles>();
#endif
}

// A suite of its own (scan).
TEST_CASE("matmuls of all small shapes", "[.scan]") {
    const std::vector<int64_t> sizes = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127};
    const std::unique_ptr<Backend> made = make_cpu_backend(1);
    Backend& backend = *made;
    for (DType type : {DType::float32, DType::bfloat16})
        for (int64_t inner : sizes)
            for (int64_t columns : sizes)
                for (int64_t rows : sizes)
                    if (backend.supports(type))
                        CHECK(wrong_products(backend, type, {rows, inner, columns}) == "");
}
