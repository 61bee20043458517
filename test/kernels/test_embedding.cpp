// Look-up of token embeddings and its gradient.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Case {
    int64_t M, V, C, group;
};

std::vector<Case> cases(uint64_t seed) {
    Random random(seed);
    return affordable(
        std::vector<Case>{{1, 1, 1, 1},
                          {1, 7, 3, 3},
                          {5, 3, 64, 32},
                          {64, 7, 48, 48},
                          {33, 257, 128, 64},
                          {300, 100, 96, 96},
                          {700, 5, 130, 130},
                          {random.integer(1, 200), random.integer(1, 300), 65, 65},
                          {random.integer(1, 200), random.integer(1, 300), 2 * random.integer(1, 60), 1}},
        10000, [](const Case& s) { return s.M * s.C; });
}

std::string text(const Case& c) {
    return "M " + std::to_string(c.M) + " V " + std::to_string(c.V) + " C " + std::to_string(c.C);
}

}  // namespace

TEST_CASE("embedding_forward looks up exactly scale times level", "[embedding_forward][device]") {
    std::vector<Grid> grids = reference::quantized_grids();
    grids.push_back(Grid::none);
    for (uint64_t seed : {1, 2}) {
        for (DType type : compute_types()) {
            for (const Case& c : cases(seed)) {
                for (Grid grid : grids) {
                    Random random(seed + 5);
                    const HostParameter host = random_parameter(random, c.V, c.C, grid, c.group);
                    const reference::QuantizedMatrix matrix = host.quantized(type);
                    const Array tokens = random.tokens(c.M, c.V);
                    Array expected;
                    for (double token : tokens)
                        for (int64_t k = 0; k < c.C; ++k)
                            expected.push_back(
                                static_cast<float>(matrix.at(static_cast<int64_t>(token), k, c.C)));
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", " << text(c)
                                         << " group " << c.group << " " << reference::name_of(grid));
                        Bench bench(*device.backend);
                        const ComputeWeight& weight = place_weight(bench, host, type, true);
                        const Tensor y = bench.output("y", DType::float32, {c.M, c.C});
                        device.backend->embedding_forward(
                            {.y = y,
                             .tokens = bench.input("tokens", tokens, DType::int32, {c.M}),
                             .weight = weight});
                        CHECK(inequality(bench.read(y), expected) == "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("an embedding is also a matmul weight", "[embedding_forward][matmul_forward][device]") {
    for (DType type : compute_types()) {
        for (Grid grid : {Grid::none, Grid::integer4}) {
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << " " << reference::name_of(grid));
                Random random(9);
                const int64_t M = 21, V = 77, C = 40;
                const HostParameter host = random_parameter(random, V, C, grid, C);
                const Array x = random.normals(M * C, type);
                Bench bench(*device.backend);
                const ComputeWeight& weight = place_weight(bench, host, type, true);
                const Tensor logits = bench.output("logits", DType::float32, {M, V});
                device.backend->matmul_forward(
                    {.z = logits, .x = bench.input("x", x, type, {M, C}), .weight = weight});
                CHECK(difference(bench.read(logits),
                                 reference::matmul_forward(x, host.quantized(type), M, V, C), DType::float32,
                                 float32_sum(C)) == "");
            }
        }
    }
}

TEST_CASE("embedding_backward adds scaled gradients to the rows of the tokens",
          "[embedding_backward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (const Case& c : cases(seed)) {
            for (bool scaled : {false, true}) {
                Random random(seed + 7);
                const Array dq = random.normals(c.V * c.C), dy = random.normals(c.M * c.C);
                const Array tokens = random.tokens(c.M, c.V);
                const Array row_scale = scaled ? random.scales(c.V, 0.1) : Array();
                const reference::Result expected =
                    reference::embedding_backward(dq, dy, tokens, row_scale, c.C);
                for (const BackendUnderTest& device : backends_under_test()) {
                    INFO(device.name << ", seed " << seed << ", " << text(c) << ", scaled " << scaled);
                    Bench bench(*device.backend);
                    const Tensor out = bench.update("dq", dq, DType::float32, {c.V, c.C});
                    device.backend->embedding_backward(
                        {.dq = out,
                         .dy = bench.input("dy", dy, DType::float32, {c.M, c.C}),
                         .tokens = bench.input("tokens", tokens, DType::int32, {c.M}),
                         .row_scale = bench.optional_input("row_scale", row_scale, DType::float32, {c.V})});
                    const Array actual = bench.read(out);
                    CHECK(difference(actual, expected, DType::float32, float32_sum(c.M)) == "");
                    CHECK(same.check(device, text(c) + std::to_string(scaled), actual) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("embedding_backward adds in the order of the rows", "[embedding_backward][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        // In float32, ((0 + 2^24) + 1) + 1 is 2^24: in any other order the ones survive.
        Bench bench(*device.backend);
        const Tensor dq = bench.update("dq", Array(6, 0.0), DType::float32, {2, 3});
        const double big = 0x1p24;
        device.backend->embedding_backward(
            {.dq = dq,
             .dy = bench.input("dy", {big, 1, 1, 1, big, 1, 1, 1, big}, DType::float32, {3, 3}),
             .tokens = bench.input("tokens", {1, 1, 1}, DType::int32, {3})});
        CHECK(inequality(bench.read(dq), {0, 0, 0, big, big, big + 2}) == "");
    }
}

TEST_CASE("embeddings show NaN only where it belongs", "[embedding_forward][embedding_backward][device]") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        Array dy(6, 1.0);
        dy[4] = nan;
        const Tensor dq = bench.update("dq", Array(8, 0.0), DType::float32, {4, 2});
        device.backend->embedding_backward({.dq = dq,
                                            .dy = bench.input("dy", dy, DType::float32, {3, 2}),
                                            .tokens = bench.input("tokens", {0, 1, 3}, DType::int32, {3})});
        const Array actual = bench.read(dq);
        for (int i = 0; i < 8; ++i) CHECK(std::isnan(actual[i]) == (i == 6));
    }
}

TEST_CASE("embedding operations check their arguments",
          "[embedding_forward][embedding_backward][contract][device]") {
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Random random(10);
            const int64_t M = 3, V = 5, C = 4;
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const HostParameter host = random_parameter(random, V, C, Grid::integer4, C);
            const ComputeWeight& weight = place_weight(bench, host, type, true);
            const ComputeWeight& no_embedding = place_weight(bench, host, type, false);
            const Tensor tokens = bench.input("tokens", {0, 1, 2}, DType::int32, {M});
            const Tensor y = bench.output("y", DType::float32, {M, C});
            const Tensor dy = bench.input("dy", random.normals(M * C), DType::float32, {M, C});
            const Tensor dq = bench.update("dq", Array(V * C, 0.0), DType::float32, {V, C});
            const Tensor row_scale = bench.input("row_scale", random.scales(V), DType::float32, {V});
            using Tensors = std::vector<Tensor>;
            CHECK(contract_violations("embedding_forward", {y, tokens}, {}, {}, [&](const Tensors& t) {
                      backend.embedding_forward({.y = t[0], .tokens = t[1], .weight = weight});
                  }) == "");
            CHECK(contract_violation("embedding_forward", [&] {
                      backend.embedding_forward({.y = y, .tokens = tokens, .weight = no_embedding});
                  }) == "");
            CHECK(contract_violations("embedding_backward", {dq, dy, tokens, row_scale}, {3}, {},
                                      [&](const Tensors& t) {
                                          backend.embedding_backward(
                                              {.dq = t[0], .dy = t[1], .tokens = t[2], .row_scale = t[3]});
                                      }) == "");
        }
    }
}
