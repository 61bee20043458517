// The bias of a linear layer, and its gradient.
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
    int64_t M, N;
};

std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    return affordable(std::vector<Sizes>{{1, 1},
                                         {1, 72},
                                         {7, 1},
                                         {3, 33},
                                         {64, 96},
                                         {257, 130},
                                         {2, 2056},
                                         {random.integer(1, 300), random.integer(1, 200)}},
                      10000, [](const Sizes& s) { return s.M * s.N; });
}

std::string text(const Sizes& s, DType type, int mode) {
    return std::string(name_of(type)) + ", M " + std::to_string(s.M) + " N " + std::to_string(s.N) +
           ", mode " + std::to_string(mode);
}

}  // namespace

TEST_CASE("bias_forward equals the double-precision formula", "[bias_forward][device]") {
    SameBits same;
    for (DType type : compute_types()) {
        for (const Sizes& s : sizes(70)) {
            for (int scaled = 0; scaled < 2; ++scaled) {
                Random random(71 + s.N);
                const Array z = random.normals(s.M * s.N, type, 3), bias = random.normals(s.N);
                const Array column_scale = scaled ? random.scales(s.N, 0.5) : Array();
                const reference::Result expected = reference::bias_forward(z, column_scale, bias, s.M, s.N);
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << text(s, type, scaled));
                    Bench bench(*device.backend);
                    const Tensor data = bench.update("z", z, type, {s.M, s.N});
                    device.backend->bias_forward({.z = data,
                                                  .column_scale = bench.optional_input(
                                                      "column_scale", column_scale, DType::float32, {s.N}),
                                                  .bias = bench.input("bias", bias, DType::float32, {s.N})});
                    const Array actual = bench.read(data);
                    CHECK(difference(actual, expected, type, 0x1p-23) == "");
                    CHECK(same.check(device, text(s, type, scaled), actual) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("bias_backward equals the double-precision formula", "[bias_backward][device]") {
    SameBits same;
    for (DType type : compute_types()) {
        for (const Sizes& s : sizes(72)) {
            for (int mode = 0; mode < 4; ++mode) {
                const bool scaled = mode & 1, accumulate = mode & 2;
                Random random(73 + s.N);
                const Array dz = random.normals(s.M * s.N, type, 1e-2);
                const Array before = random.normals(s.N, DType::float32, 0.1);
                const Array column_scale = scaled ? random.scales(s.N, 0.5) : Array();
                const reference::BiasBackward expected =
                    reference::bias_backward(accumulate ? before : Array(), dz, column_scale, s.M, s.N);
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    const std::string label = text(s, type, mode);
                    INFO(device.name << " " << label);
                    Bench bench(*device.backend);
                    // Without scales dz is read only.
                    const Tensor data = scaled ? bench.update("dz", dz, type, {s.M, s.N})
                                               : bench.input("dz", dz, type, {s.M, s.N});
                    const Tensor dbias = accumulate ? bench.update("dbias", before, DType::float32, {s.N})
                                                    : bench.output("dbias", DType::float32, {s.N});
                    device.backend->bias_backward(
                        {.dz = data,
                         .dbias = dbias,
                         .column_scale =
                             bench.optional_input("column_scale", column_scale, DType::float32, {s.N}),
                         .accumulate = accumulate,
                         .workspace = bench.workspace(device.backend->bias_backward_workspace(s.M, s.N))});
                    CHECK(difference(bench.read(data), expected.dz, type, 0x1p-24) == "");
                    CHECK(difference(bench.read(dbias), expected.dbias, DType::float32, float32_sum(s.M)) ==
                          "");
                    CHECK(same.check(device, label, bench.read(data)) == "");
                    CHECK(same.check(device, label + " dbias", bench.read(dbias)) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("the oracle of bias has the right gradient", "[bias_backward][oracle]") {
    const int64_t M = 4, N = 5;
    Random random(74);
    const Array z = random.normals(M * N), bias = random.normals(N), dy = random.normals(M * N);
    const Array column_scale = random.scales(N, 0.5);
    const auto loss = [&](const Array& z_, const Array& bias_) {
        return reference::dot(dy, reference::bias_forward(z_, column_scale, bias_, M, N).value);
    };
    const reference::BiasBackward gradient = reference::bias_backward({}, dy, column_scale, M, N);
    const Array by_z = reference::numerical_gradient([&](const Array& a) { return loss(a, bias); }, z);
    const Array by_bias = reference::numerical_gradient([&](const Array& a) { return loss(z, a); }, bias);
    CHECK(reference::relative_distance(gradient.dz.value, by_z) < 1e-8);
    CHECK(reference::relative_distance(gradient.dbias.value, by_bias) < 1e-8);
}

TEST_CASE("bias shows NaN and infinity in their place and their column",
          "[bias_forward][bias_backward][device]") {
    const int64_t M = 3, N = 24;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                INFO(device.name << " " << name_of(type) << " " << special);
                Array values(M * N, 1.0);
                values[N + 5] = special;
                Bench bench(*device.backend);
                const Tensor z = bench.update("z", values, type, {M, N});
                const Tensor dz = bench.update("dz", values, type, {M, N});
                const Tensor dbias = bench.output("dbias", DType::float32, {N});
                const Tensor ones = bench.input("ones", Array(N, 1.0), DType::float32, {N});
                device.backend->bias_forward({.z = z, .bias = ones});
                device.backend->bias_backward(
                    {.dz = dz,
                     .dbias = dbias,
                     .column_scale = ones,
                     .workspace = bench.workspace(device.backend->bias_backward_workspace(M, N))});
                const Array forward = bench.read(z), backward = bench.read(dz), sums = bench.read(dbias);
                for (int64_t i = 0; i < M * N; ++i) {
                    CHECK(std::isfinite(forward[i]) == (i != N + 5));
                    CHECK(std::isfinite(backward[i]) == (i != N + 5));
                }
                for (int64_t n = 0; n < N; ++n) CHECK(std::isfinite(sums[n]) == (n != 5));
            }
        }
    }
}

TEST_CASE("bias operations check their arguments", "[bias_forward][bias_backward][contract][device]") {
    const int64_t M = 3, N = 4;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Tensor z = bench.update("z", Array(M * N, 1.0), type, {M, N});
            const Tensor scale = bench.input("column_scale", Array(N, 1.0), DType::float32, {N});
            const Tensor bias = bench.update("bias", Array(N, 1.0), DType::float32, {N});
            void* workspace = bench.workspace(backend.bias_backward_workspace(M, N));
            using Tensors = std::vector<Tensor>;
            // One row less is another problem, not a wrong one.
            const auto violations = [&](const char* name, const auto& call) {
                return contract_violations(name, {scale, bias}, {0}, {},
                                           [&](const Tensors& t) { call(z, t[0], t[1]); });
            };
            const auto forward = [&](const Tensor& z_, const Tensor& scale_, const Tensor& bias_) {
                backend.bias_forward({.z = z_, .column_scale = scale_, .bias = bias_});
            };
            const auto backward = [&](const Tensor& dz, const Tensor& scale_, const Tensor& dbias) {
                backend.bias_backward(
                    {.dz = dz, .dbias = dbias, .column_scale = scale_, .workspace = workspace});
            };
            CHECK(violations("bias_forward", forward) == "");
            CHECK(violations("bias_backward", backward) == "");
            for (const Tensor& wrong :
                 {Tensor(), with_dtype(z, DType::int32), with_extent(z, 1, N - 1), bias}) {
                CHECK(contract_violation("bias_forward", [&] { forward(wrong, scale, bias); }) == "");
                CHECK(contract_violation("bias_backward", [&] { backward(wrong, scale, bias); }) == "");
            }
        }
    }
}
