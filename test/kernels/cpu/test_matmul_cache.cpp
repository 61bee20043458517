// The CPU's matmuls, which oneDNN computes: all small shapes, and the rule that keeps shapes away from its AMX kernels
// that these compute wrongly. The rule is forced on, so that it is tested on every CPU.
#include "kernels/cpu/matmul_cache.h"

#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/platform/illegal_instruction.h"
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

TEST_CASE("with AMX, bfloat16 matmuls get an inner dimension without a remainder of 32", "[matmul_cache]") {
    for (int64_t inner : {1, 31, 32, 33, 63, 64, 50257}) {
        CHECK(padded_inner(false, DType::bfloat16, inner) == inner);
        CHECK(padded_inner(true, DType::float32, inner) == inner);
        const int64_t padded = padded_inner(true, DType::bfloat16, inner);
        CHECK((padded % 32 == 0 && padded >= inner && padded < inner + 32));
    }
}

TEST_CASE("matmuls that are padded as for AMX give the same products", "[matmul_cache]") {
    for (int threads : {1, 2}) {
        CpuBackend backend(threads, true);
        for (DType type : {DType::float32, DType::bfloat16})
            for (const Shape& shape : {Shape{1, 1, 1},
                                       {3, 2, 5},
                                       {65, 63, 1},
                                       {65, 63, 17},
                                       {64, 31, 16},
                                       {17, 33, 127},
                                       {96, 64, 64},
                                       {33, 65, 100},
                                       {2, 257, 96},
                                       {48, 160, 80},
                                       {7, 1000, 40},
                                       {128, 96, 257},
                                       {65, 63, 63}})
                if (backend.supports(type)) CHECK(wrong_products(backend, type, shape) == "");
    }
}

// A suite of its own (scan): a library that dies here takes no other test along.
TEST_CASE("matmuls of all small shapes", "[.scan]") {
    const std::vector<int64_t> sizes = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127};
    for (DType type : {DType::float32, DType::bfloat16})
        for (int64_t inner : sizes)
            for (int64_t columns : sizes) {
                CpuBackend backend(1);  // forgets the matmuls of the last one
                if (!backend.supports(type)) continue;
                for (int64_t rows : sizes) CHECK(wrong_products(backend, type, {rows, inner, columns}) == "");
            }
}

TEST_CASE("an illegal instruction names the CPU and the library before the process dies of it",
          "[matmul_cache]") {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGILL, SIG_DFL);
        explain_illegal_instructions("a CPU");
        dup2(ends[1], STDERR_FILENO);
        __builtin_trap();
    }
    close(ends[1]);
    std::string text;
    char buffer[256];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<size_t>(got));
    close(ends[0]);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGILL));
    CHECK(text.find("illegal instruction on ") != std::string::npos);
    CHECK(text.find("oneDNN 2.") != std::string::npos);
    CHECK(text.find('\n') == text.size() - 1);
}
