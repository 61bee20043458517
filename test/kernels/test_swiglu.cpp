// SwiGLU and its gradient.
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
    int64_t M, F;
};

std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    return affordable(std::vector<Sizes>{{1, 1},
                                         {1, 64},
                                         {7, 1},
                                         {3, 33},
                                         {64, 96},
                                         {257, 130},
                                         {2, 1025},
                                         {random.integer(1, 300), random.integer(1, 200)}},
                      10000, [](const Sizes& s) { return s.M * s.F; });
}

std::string text(const Sizes& s, uint64_t seed, DType type) {
    return std::string(name_of(type)) + ", seed " + std::to_string(seed) + ", M " + std::to_string(s.M) +
           " F " + std::to_string(s.F);
}

// A vectorized exponential may be off by a few units in the last place.
constexpr double slack = 0x1p-20;

}  // namespace

TEST_CASE("swiglu_forward equals the double-precision formula", "[swiglu_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                Random random(seed + 60);
                const Array gate_up = random.normals(s.M * 2 * s.F, type, 3);
                const Array column_scale = s.F % 2 == 1 ? random.scales(2 * s.F, 0.5) : Array();
                const reference::Result expected =
                    reference::swiglu_forward(reference::scale_columns(gate_up, column_scale), s.M, s.F);
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << text(s, seed, type));
                    Bench bench(*device.backend);
                    const Tensor y = bench.output("y", type, {s.M, s.F});
                    device.backend->swiglu_forward(
                        {.y = y,
                         .gate_up = bench.input("gate_up", gate_up, type, {s.M, 2 * s.F}),
                         .column_scale =
                             bench.optional_input("column_scale", column_scale, DType::float32, {2 * s.F})});
                    const Array actual = bench.read(y);
                    CHECK(difference(actual, expected, type, slack) == "");
                    CHECK(same.check(device, text(s, seed, type), actual) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("swiglu_backward equals the double-precision formula, also in place", "[swiglu_backward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed + 10)) {
                for (int mode = 0; mode < 4; ++mode) {
                    const bool in_place = mode & 1, scaled = mode & 2;
                    Random random(seed + 60);
                    const Array gate_up = random.normals(s.M * 2 * s.F, type, 3);
                    const Array dy = random.normals(s.M * s.F, type, 1e-3);
                    const Array column_scale = scaled ? random.scales(2 * s.F, 0.1) : Array();
                    const reference::Result expected = reference::swiglu_backward(
                        dy, reference::scale_columns(gate_up, column_scale), column_scale, s.M, s.F);
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << text(s, seed, type) << ", in place " << in_place
                                         << ", scaled " << scaled);
                        Bench bench(*device.backend);
                        const Tensor in = in_place ? bench.update("gate_up", gate_up, type, {s.M, 2 * s.F})
                                                   : bench.input("gate_up", gate_up, type, {s.M, 2 * s.F});
                        const Tensor out = in_place ? in : bench.output("d_gate_up", type, {s.M, 2 * s.F});
                        device.backend->swiglu_backward(
                            {.d_gate_up = out,
                             .dy = bench.input("dy", dy, type, {s.M, s.F}),
                             .gate_up = in,
                             .column_scale = bench.optional_input("column_scale", column_scale,
                                                                  DType::float32, {2 * s.F})});
                        const Array actual = bench.read(out);
                        CHECK(difference(actual, expected, type, slack) == "");
                        CHECK(same.check(device, text(s, seed, type) + (scaled ? " scaled" : ""), actual) ==
                              "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("the oracle of swiglu has the right gradient", "[swiglu_backward][oracle]") {
    const int64_t M = 4, F = 9;
    Random random(61);
    const Array gate_up = random.normals(M * 2 * F, DType::float32, 2), dy = random.normals(M * F);
    const auto loss = [&](const Array& x) {
        return reference::dot(dy, reference::swiglu_forward(x, M, F).value);
    };
    CHECK(reference::relative_distance(reference::swiglu_backward(dy, gate_up, {}, M, F).value,
                                       reference::numerical_gradient(loss, gate_up)) < 1e-8);
}

TEST_CASE("swiglu of huge gates saturates without NaN", "[swiglu_forward][swiglu_backward][device]") {
    const Array gates = {-1e4,  -200, -100, -89, -88, -87, -1.2784645, 0,  -0.0,
                         1e-20, 20,   87,   88,  89,  100, 200,        1e4};
    const auto F = static_cast<int64_t>(gates.size());
    for (DType type : compute_types()) {
        Array gate_up = reference::rounded(type, gates);
        gate_up.resize(2 * F, 2.0);
        const Array dy(F, 1.0);
        const reference::Result forward = reference::swiglu_forward(gate_up, 1, F);
        const reference::Result backward = reference::swiglu_backward(dy, gate_up, {}, 1, F);
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            const Tensor in = bench.input("gate_up", gate_up, type, {1, 2 * F});
            const Tensor y = bench.output("y", type, {1, F}), d = bench.output("d_gate_up", type, {1, 2 * F});
            device.backend->swiglu_forward({.y = y, .gate_up = in});
            device.backend->swiglu_backward(
                {.d_gate_up = d, .dy = bench.input("dy", dy, type, {1, F}), .gate_up = in});
            const auto tail = [&](const Array& actual, const reference::Result& expected) {
                // Near the end of the exponents of float32 only closeness to zero counts.
                reference::Result bound = expected;
                for (double& m : bound.magnitude) m += 1e-34 / slack;
                return difference(actual, bound, type, slack);
            };
            CHECK(tail(bench.read(y), forward) == "");
            CHECK(tail(bench.read(d), backward) == "");
        }
    }
}

TEST_CASE("swiglu shows NaN and infinity", "[swiglu_forward][swiglu_backward][device]") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const int64_t F = 20;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {nan, HUGE_VAL}) {
                for (int64_t column : {int64_t{3}, F + 3}) {
                    INFO(device.name << " " << name_of(type) << " " << special << " in column " << column);
                    Array gate_up(2 * F, 0.5);
                    gate_up[column] = special;
                    Bench bench(*device.backend);
                    const Tensor in = bench.input("gate_up", gate_up, type, {1, 2 * F});
                    const Tensor y = bench.output("y", type, {1, F}), d = bench.output("d", type, {1, 2 * F});
                    device.backend->swiglu_forward({.y = y, .gate_up = in});
                    device.backend->swiglu_backward({.d_gate_up = d,
                                                     .dy = bench.input("dy", Array(F, 1.0), type, {1, F}),
                                                     .gate_up = in});
                    const Array y_out = bench.read(y), d_out = bench.read(d);
                    CHECK((!std::isfinite(d_out[3]) || !std::isfinite(d_out[F + 3])));
                    for (int64_t f = 0; f < F; ++f) {
                        CHECK(std::isfinite(y_out[f]) == (f != 3));
                        if (f != 3) CHECK((std::isfinite(d_out[f]) && std::isfinite(d_out[F + f])));
                    }
                }
            }
            INFO(device.name << " " << name_of(type) << " NaN in dy");
            Bench bench(*device.backend);
            Array dy(F, 1.0);
            dy[5] = nan;
            const Tensor d = bench.output("d", type, {1, 2 * F});
            device.backend->swiglu_backward(
                {.d_gate_up = d,
                 .dy = bench.input("dy", dy, type, {1, F}),
                 .gate_up = bench.input("gate_up", Array(2 * F, 0.5), type, {1, 2 * F})});
            CHECK(std::isnan(bench.read(d)[5]));
            CHECK(std::isnan(bench.read(d)[F + 5]));
        }
    }
}

TEST_CASE("swiglu operations check their arguments", "[swiglu_forward][swiglu_backward][contract][device]") {
    const int64_t M = 3, F = 4;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Tensor gate_up = bench.input("gate_up", Array(M * 2 * F, 1.0), type, {M, 2 * F});
            const Tensor y = bench.output("y", type, {M, F}),
                         dy = bench.input("dy", Array(M * F, 1.0), type, {M, F});
            const Tensor d = bench.output("d_gate_up", type, {M, 2 * F});
            const Tensor scale = bench.input("column_scale", Array(2 * F, 1.0), DType::float32, {2 * F});
            using Tensors = std::vector<Tensor>;
            CHECK(contract_violations("swiglu_forward", {y, gate_up, scale}, {2}, {}, [&](const Tensors& t) {
                      backend.swiglu_forward({.y = t[0], .gate_up = t[1], .column_scale = t[2]});
                  }) == "");
            CHECK(contract_violations(
                      "swiglu_backward", {d, dy, gate_up, scale}, {3}, {}, [&](const Tensors& t) {
                          backend.swiglu_backward(
                              {.d_gate_up = t[0], .dy = t[1], .gate_up = t[2], .column_scale = t[3]});
                      }) == "");
        }
    }
}
