// The three matmul forms of a linear layer, plain and with quantized weights.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Sizes {
    int64_t M, N, K;
};

std::string text(const Sizes& s) {
    return "M " + std::to_string(s.M) + " N " + std::to_string(s.N) + " K " + std::to_string(s.K);
}

std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    std::vector<Sizes> result = {{1, 1, 1},      {1, 7, 64},    {5, 1, 3},    {3, 33, 1},
                                 {2, 2, 2},      {31, 32, 33},  {64, 64, 64}, {65, 63, 17},
                                 {128, 96, 160}, {130, 7, 129}, {257, 3, 40}, {17, 200, 112}};
    for (int i = 0; i < 4; ++i)
        result.push_back({random.integer(1, 140), random.integer(1, 140), random.integer(1, 140)});
    return affordable(result, 300000, [](const Sizes& s) { return s.M * s.N * s.K; });
}

// The weights of size `s` in different forms: full precision, one scale per row, groups where they divide K.
std::vector<HostParameter> weights(Random& random, const Sizes& s) {
    std::vector<HostParameter> result = {random_parameter(random, s.N, s.K, Grid::none, 0)};
    const auto& grids = reference::quantized_grids();
    result.push_back(random_parameter(random, s.N, s.K, grids[random.integer(0, 3)], s.K));
    result.push_back(random_parameter(random, s.N, s.K, grids[random.integer(4, 7)], s.K));
    for (int64_t group : {16, 32})
        if (s.K % group == 0 && s.K > group)
            result.push_back(random_parameter(random, s.N, s.K, grids[random.integer(0, 7)], group));
    return result;
}

}  // namespace

TEST_CASE("matmul_forward equals the double-precision product", "[matmul_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                Random random(seed + 10);
                int form = 0;
                for (const HostParameter& host : weights(random, s)) {
                    const Array x = random.normals(s.M * s.K, type);
                    const reference::Result expected =
                        reference::matmul_forward(x, host.quantized(type), s.M, s.N, s.K);
                    ++form;
                    for (DType y_type : {DType::float32, DType::bfloat16}) {
                        if (y_type != type && y_type != DType::float32) continue;
                        for (const BackendUnderTest& device : backends_under_test(type)) {
                            INFO(device.name << " " << name_of(type) << " to " << name_of(y_type) << ", seed "
                                             << seed << ", " << text(s) << ", grid "
                                             << reference::name_of(host.grid) << " group " << host.group);
                            Bench bench(*device.backend);
                            const ComputeWeight& weight = place_weight(bench, host, type);
                            const Tensor y = bench.output("y", y_type, {s.M, s.N});
                            device.backend->matmul_forward(
                                {.z = y, .x = bench.input("x", x, type, {s.M, s.K}), .weight = weight});
                            const Array actual = bench.read(y);
                            CHECK(difference(actual, expected, y_type, float32_sum(s.K)) == "");
                            CHECK(same.check(device,
                                             text(s) + name_of(type) + name_of(y_type) + std::to_string(form),
                                             actual) == "");
                            CHECK(bench.damage() == "");
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("matmul_input_gradient equals the double-precision product", "[matmul_input_gradient][device]") {
    for (uint64_t seed : {3, 4}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                Random random(seed + 10);
                int form = 0;
                for (const HostParameter& host : weights(random, s)) {
                    const Array dz = random.normals(s.M * s.N, type, 1e-3);
                    // The row scale has no part in it: dz is multiplied by it already.
                    const reference::Result expected =
                        reference::matmul_input_gradient(dz, host.quantized(type).q, s.M, s.N, s.K);
                    ++form;
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", " << text(s)
                                         << ", grid " << reference::name_of(host.grid) << " group "
                                         << host.group);
                        Bench bench(*device.backend);
                        const ComputeWeight& weight = place_weight(bench, host, type);
                        const Tensor dx = bench.output("dx", type, {s.M, s.K});
                        device.backend->matmul_input_gradient(
                            {.dx = dx, .dz = bench.input("dz", dz, type, {s.M, s.N}), .weight = weight});
                        const Array actual = bench.read(dx);
                        CHECK(difference(actual, expected, type, float32_sum(s.N)) == "");
                        CHECK(same.check(device, text(s) + name_of(type) + std::to_string(form), actual) ==
                              "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("matmul_weight_gradient equals the double-precision product", "[matmul_weight_gradient][device]") {
    for (uint64_t seed : {5, 6}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                for (bool accumulate : {false, true}) {
                    Random random(seed + 10);
                    const Array x = random.normals(s.M * s.K, type),
                                dz = random.normals(s.M * s.N, type, 1e-3);
                    const Array before =
                        accumulate ? random.normals(s.N * s.K, DType::float32, 0.05) : Array();
                    const reference::Result expected =
                        reference::matmul_weight_gradient(dz, x, before, s.M, s.N, s.K);
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", " << text(s)
                                         << ", accumulate " << accumulate);
                        Bench bench(*device.backend);
                        const Tensor dq = accumulate ? bench.update("dq", before, DType::float32, {s.N, s.K})
                                                     : bench.output("dq", DType::float32, {s.N, s.K});
                        device.backend->matmul_weight_gradient({.dq = dq,
                                                                .dz = bench.input("dz", dz, type, {s.M, s.N}),
                                                                .x = bench.input("x", x, type, {s.M, s.K}),
                                                                .accumulate = accumulate});
                        const Array actual = bench.read(dq);
                        CHECK(difference(actual, expected, DType::float32, float32_sum(s.M)) == "");
                        CHECK(same.check(device, text(s) + name_of(type) + std::to_string(accumulate),
                                         actual) == "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("weight gradients go into a range of rows of a larger matrix", "[matmul_weight_gradient][device]") {
    for (DType type : compute_types()) {
        for (bool accumulate : {false, true}) {
            Random random(51);
            const int64_t M = 33, N = 21, K = 13, total = 40, first = 7;
            const Array x = random.normals(M * K, type), dz = random.normals(M * N, type);
            const Array before = random.normals(total * K);
            const Array range(before.begin() + first * K, before.begin() + (first + N) * K);
            const reference::Result expected =
                reference::matmul_weight_gradient(dz, x, accumulate ? range : Array(), M, N, K);
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << ", accumulate " << accumulate);
                Bench bench(*device.backend);
                const Tensor dq = bench.update("dq", before, DType::float32, {total, K});
                device.backend->matmul_weight_gradient({.dq = dq.rows(first, N),
                                                        .dz = bench.input("dz", dz, type, {M, N}),
                                                        .x = bench.input("x", x, type, {M, K}),
                                                        .accumulate = accumulate});
                const Array after = bench.read(dq);
                CHECK(difference(Array(after.begin() + first * K, after.begin() + (first + N) * K), expected,
                                 DType::float32, float32_sum(M)) == "");
                for (int64_t i = 0; i < total * K; ++i)
                    if (i < first * K || i >= (first + N) * K) REQUIRE(after[i] == before[i]);
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("a compute weight serves any number of rows, chunk by chunk", "[matmul_forward][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(52);
            const int64_t M = 70, N = 45, K = 38;
            const HostParameter host = random_parameter(random, N, K, Grid::integer4, K);
            Bench bench(*device.backend);
            const ComputeWeight& weight = place_weight(bench, host, type);
            const Array values = random.normals(M * K, type);
            const Tensor x = bench.input("x", values, type, {M, K});
            const Tensor y = bench.output("y", type, {M, N});
            for (int64_t first = 0; first < M; first += 16) {
                const int64_t count = std::min<int64_t>(16, M - first);
                device.backend->matmul_forward(
                    {.z = y.rows(first, count), .x = x.rows(first, count), .weight = weight});
            }
            CHECK(difference(bench.read(y), reference::matmul_forward(values, host.quantized(type), M, N, K),
                             type, float32_sum(K)) == "");
        }
    }
}

// The contract moves the scale out of the backward matmuls. Here the gradients of y = x ŵᵀ with the full
// matrix ŵ = s * q, which need no such identity, are compared with what the operations deliver through it.
TEST_CASE("gradients through the row scale are those of the whole weight",
          "[matmul_input_gradient]"
          "[matmul_weight_gradient][device]") {
    const int64_t M = 29, N = 18, K = 23;
    for (Grid grid : reference::quantized_grids()) {
        Random random(60);
        const HostParameter host = random_parameter(random, N, K, grid, K);
        const reference::QuantizedMatrix matrix = host.quantized(DType::float32);
        const Array x = random.normals(M * K), dy = random.normals(M * N);
        Array whole(N * K), dz(M * N), plain(M * N, 0);
        for (int64_t i = 0; i < N * K; ++i) whole[i] = matrix.at(i / K, i % K, K);
        for (int64_t i = 0; i < M * N; ++i) dz[i] = static_cast<float>(dy[i] * matrix.row_scale[i % N]);

        // d loss / dŵ and d loss / dx of loss = sum dy ∘ (x ŵᵀ), by finite differences.
        const auto loss = [&](const Array& x_, const Array& w_) {
            return reference::dot(dy, reference::matmul_forward(x_, {w_, {}}, M, N, K).value);
        };
        const Array dx = reference::matmul_input_gradient(dy, whole, M, N, K).value;
        const Array dw = reference::matmul_weight_gradient(dy, x, {}, M, N, K).value;
        if (grid == Grid::integer4) {
            const auto of_x = [&](const Array& x_) { return loss(x_, whole); };
            const auto of_w = [&](const Array& w_) { return loss(x, w_); };
            CHECK(reference::relative_distance(reference::numerical_gradient(of_x, x, 1e-3), dx) < 1e-8);
            CHECK(reference::relative_distance(reference::numerical_gradient(of_w, whole, 1e-3), dw) < 1e-8);
        }
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << " " << reference::name_of(grid));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const ComputeWeight& weight = place_weight(bench, host, DType::float32);
            const Tensor z = bench.input("dz", dz, DType::float32, {M, N});
            const Tensor dx_out = bench.output("dx", DType::float32, {M, K});
            const Tensor dq = bench.output("dq", DType::float32, {N, K});
            backend.matmul_input_gradient({.dx = dx_out, .dz = z, .weight = weight});
            backend.matmul_weight_gradient(
                {.dq = dq, .dz = z, .x = bench.input("x", x, DType::float32, {M, K})});
            CHECK(reference::relative_distance(bench.read(dx_out), dx) < 1e-6);
            Array divided = bench.read(dq);
            for (int64_t i = 0; i < N * K; ++i) divided[i] /= matrix.row_scale[i / K];
            CHECK(reference::relative_distance(divided, dw) < 1e-6);
        }
    }
}

TEST_CASE("matmuls show NaN and infinity",
          "[matmul_forward][matmul_input_gradient][matmul_weight_gradient][device]") {
    const int64_t M = 5, N = 6, K = 7;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                INFO(device.name << " " << name_of(type) << " " << special);
                Random random(70);
                Bench bench(*device.backend);
                const ComputeWeight& weight =
                    place_weight(bench, random_parameter(random, N, K, Grid::integer4, K), type);
                Array x = random.normals(M * K, type), dz = random.normals(M * N, type);
                x[2 * K + 3] = special;
                dz[1 * N + 4] = special;
                const Tensor x_in = bench.input("x", x, type, {M, K}),
                             dz_in = bench.input("dz", dz, type, {M, N});
                const Tensor y = bench.output("y", type, {M, N}), dx = bench.output("dx", type, {M, K});
                const Tensor dq = bench.output("dq", DType::float32, {N, K});
                device.backend->matmul_forward({.z = y, .x = x_in, .weight = weight});
                device.backend->matmul_input_gradient({.dx = dx, .dz = dz_in, .weight = weight});
                device.backend->matmul_weight_gradient({.dq = dq, .dz = dz_in, .x = x_in});
                const Array y_out = bench.read(y), dx_out = bench.read(dx), dq_out = bench.read(dq);
                int row_of_y = 0, row_of_dx = 0;
                for (int64_t n = 0; n < N; ++n) {
                    row_of_y += !std::isfinite(y_out[2 * N + n]);
                    CHECK(std::isfinite(y_out[n]));
                    CHECK_FALSE(std::isfinite(dq_out[n * K + 3]));  // special in x times anything
                }
                for (int64_t k = 0; k < K; ++k) {
                    row_of_dx += !std::isfinite(dx_out[1 * K + k]);
                    CHECK(std::isfinite(dx_out[k]));
                    CHECK_FALSE(std::isfinite(dq_out[4 * K + k]));
                }
                CHECK(row_of_y == N);
                CHECK(row_of_dx == K);
            }
        }
    }
}

TEST_CASE("matmuls check their arguments",
          "[matmul_forward][matmul_input_gradient][matmul_weight_gradient][contract][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(71);
            const int64_t M = 4, N = 3, K = 5;
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const ComputeWeight& weight =
                place_weight(bench, random_parameter(random, N, K, Grid::integer4, K), type);
            const Tensor x = bench.input("x", random.normals(M * K, type), type, {M, K});
            const Tensor dz = bench.input("dz", random.normals(M * N, type), type, {M, N});
            const Tensor y = bench.output("y", type, {M, N}), dx = bench.output("dx", type, {M, K});
            const Tensor dq = bench.output("dq", DType::float32, {N, K});
            using Tensors = std::vector<Tensor>;
            // y may be float32 in either compute type, so only for float32 is any other dtype wrong.
            const std::set<int> y_is_free = type == DType::bfloat16 ? std::set<int>{0} : std::set<int>{};
            CHECK(contract_violations("matmul_forward", {y, x}, {}, y_is_free, [&](const Tensors& t) {
                      backend.matmul_forward({.z = t[0], .x = t[1], .weight = weight});
                  }) == "");
            CHECK(contract_violations("matmul_input_gradient", {dx, dz}, {}, {}, [&](const Tensors& t) {
                      backend.matmul_input_gradient({.dx = t[0], .dz = t[1], .weight = weight});
                  }) == "");
            CHECK(contract_violations("matmul_weight_gradient", {dq, dz, x}, {}, {}, [&](const Tensors& t) {
                      backend.matmul_weight_gradient({.dq = t[0], .dz = t[1], .x = t[2]});
                  }) == "");
        }
    }
}
