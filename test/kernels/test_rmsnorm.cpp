// RMSNorm with the residual addition before it, and its gradient.
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
    int64_t M, C;
};

std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    const Sizes first{random.integer(1, 300), random.integer(1, 200)},
        second{random.integer(1, 300), random.integer(1, 90)};
    const std::vector<Sizes> others = {first, second};
    return affordable(seed > 1 ? others
                               : std::vector<Sizes>{{1, 1},
                                                    {1, 64},
                                                    {3, 1},
                                                    {2, 7},
                                                    {31, 33},
                                                    {64, 256},
                                                    {65, 130},
                                                    {257, 48},
                                                    {700, 96},
                                                    {5, 1031},
                                                    first,
                                                    second},
                      10000, [](const Sizes& s) { return s.M * s.C; });
}

std::string text(const Sizes& s, uint64_t seed, DType type) {
    return std::string(name_of(type)) + ", seed " + std::to_string(seed) + ", M " + std::to_string(s.M) +
           " C " + std::to_string(s.C);
}

constexpr float epsilon = 1e-5f;

reference::Result plain(const Array& value, const Array& magnitude) {
    reference::Result result;
    result.value = value;
    result.magnitude = magnitude;
    return result;
}

Array absolute(Array values) {
    for (double& value : values) value = std::abs(value);
    return values;
}

}  // namespace

TEST_CASE("residual_rmsnorm_forward equals the double-precision formula",
          "[residual_rmsnorm_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                // With a branch into separate memory, with a branch in place, without a branch.
                for (const std::string mode : {"separate", "in place", "no branch", "scaled"}) {
                    Random random(seed + 3);
                    const Array residual = random.normals(s.M * s.C, DType::float32, 3);
                    const Array branch = mode == "no branch" ? Array() : random.normals(s.M * s.C, type);
                    const Array weight = random.normals(s.C);
                    const Array column_scale = mode == "scaled" ? random.scales(s.C, 0.5) : Array();
                    const reference::RMSNormForward expected = reference::rmsnorm_forward(
                        residual, reference::scale_columns(branch, column_scale), weight, epsilon, s.M, s.C);
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        const std::string label = text(s, seed, type) + ", " + mode;
                        INFO(device.name << " " << label);
                        Bench bench(*device.backend);
                        const Tensor in =
                            mode == "in place"
                                ? bench.update("residual", residual, DType::float32, {s.M, s.C})
                                : bench.input("residual_in", residual, DType::float32, {s.M, s.C});
                        Tensor out;
                        if (mode == "in place") out = in;
                        if (mode == "separate" || mode == "scaled")
                            out = bench.output("residual_out", DType::float32, {s.M, s.C});
                        const Tensor y = bench.output("y", type, {s.M, s.C});
                        const Tensor rstd = bench.output("rstd", DType::float32, {s.M});
                        device.backend->residual_rmsnorm_forward(
                            {.residual_out = out,
                             .y = y,
                             .rstd = rstd,
                             .residual_in = in,
                             .branch = bench.optional_input("branch", branch, type, {s.M, s.C}),
                             .column_scale =
                                 bench.optional_input("column_scale", column_scale, DType::float32, {s.C}),
                             .weight = bench.input("weight", weight, DType::float32, {s.C}),
                             .epsilon = epsilon});
                        const double slack = float32_sum(s.C);
                        CHECK(difference(bench.read(y), expected.y, type, slack) == "");
                        CHECK(difference(bench.read(rstd), plain(expected.rstd, expected.rstd),
                                         DType::float32, slack) == "");
                        if (!out.empty() && column_scale.empty())  // one addition in float32
                            CHECK(inequality(bench.read(out),
                                             reference::rounded(DType::float32, expected.residual)) == "");
                        if (!column_scale
                                 .empty()) {  // and a product, rounded first where there is no fused form
                            Array operands = absolute(residual);
                            const Array scaled = reference::scale_columns(branch, column_scale);
                            for (size_t i = 0; i < operands.size(); ++i) operands[i] += std::abs(scaled[i]);
                            CHECK(difference(bench.read(out), plain(expected.residual, operands),
                                             DType::float32, 0x1p-24) == "");
                        }
                        CHECK(same.check(device, label, bench.read(y)) == "");
                        CHECK(same.check(device, label + " rstd", bench.read(rstd)) == "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("rmsnorm_backward equals the double-precision formula", "[rmsnorm_backward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const Sizes& s : sizes(seed)) {
                for (int mode = 0; mode < 16; ++mode) {
                    const bool accumulate_residual = mode & 1, accumulate_weight = mode & 2;
                    const bool with_dz = mode & 4, scaled = mode & 8;
                    if (scaled && !with_dz) continue;
                    Random random(seed + 4);
                    const Array residual = random.normals(s.M * s.C, DType::float32, 2);
                    const Array weight = random.normals(s.C), dy = random.normals(s.M * s.C, type, 1e-2);
                    const Array rstd = reference::rounded(
                        DType::float32,
                        reference::rmsnorm_forward(residual, {}, weight, epsilon, s.M, s.C).rstd);
                    const Array before = random.normals(s.M * s.C, DType::float32, 1e-2);
                    const Array weight_before = random.normals(s.C, DType::float32, 0.1);
                    const Array column_scale = scaled ? random.scales(s.C, 0.1) : Array();
                    const reference::RMSNormBackward expected = reference::rmsnorm_backward(
                        accumulate_residual ? before : Array(), accumulate_weight ? weight_before : Array(),
                        dy, residual, rstd, weight, column_scale, s.M, s.C);
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        const std::string label = text(s, seed, type) + ", mode " + std::to_string(mode);
                        INFO(device.name << " " << label);
                        Bench bench(*device.backend);
                        Backend& backend = *device.backend;
                        const Tensor d_residual =
                            accumulate_residual
                                ? bench.update("d_residual", before, DType::float32, {s.M, s.C})
                                : bench.output("d_residual", DType::float32, {s.M, s.C});
                        const Tensor dweight =
                            accumulate_weight ? bench.update("dweight", weight_before, DType::float32, {s.C})
                                              : bench.output("dweight", DType::float32, {s.C});
                        const Tensor dz = with_dz ? bench.output("dz", type, {s.M, s.C}) : Tensor();
                        void* workspace = bench.workspace(backend.rmsnorm_backward_workspace(s.M, s.C));
                        backend.rmsnorm_backward(
                            {.d_residual = d_residual,
                             .dweight = dweight,
                             .dz = dz,
                             .dy = bench.input("dy", dy, type, {s.M, s.C}),
                             .residual = bench.input("residual", residual, DType::float32, {s.M, s.C}),
                             .rstd = bench.input("rstd", rstd, DType::float32, {s.M}),
                             .weight = bench.input("weight", weight, DType::float32, {s.C}),
                             .column_scale =
                                 bench.optional_input("column_scale", column_scale, DType::float32, {s.C}),
                             .accumulate_residual = accumulate_residual,
                             .accumulate_weight = accumulate_weight,
                             .workspace = workspace});
                        CHECK(difference(bench.read(d_residual), expected.d_residual, DType::float32,
                                         float32_sum(s.C)) == "");
                        CHECK(difference(bench.read(dweight), expected.dweight, DType::float32,
                                         float32_sum(s.M)) == "");
                        CHECK(same.check(device, label, bench.read(d_residual)) == "");
                        CHECK(same.check(device, label + " dweight", bench.read(dweight)) == "");
                        if (with_dz) {
                            CHECK(difference(bench.read(dz), expected.dz, type, float32_sum(s.C)) == "");
                            CHECK(same.check(device, label + " dz", bench.read(dz)) == "");
                        }
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("the oracle of rmsnorm has the right gradient", "[rmsnorm_backward][oracle]") {
    const int64_t M = 3, C = 7;
    Random random(20);
    const Array residual = random.normals(M * C), weight = random.normals(C), dy = random.normals(M * C);
    const Array rstd = reference::rmsnorm_forward(residual, {}, weight, epsilon, M, C).rstd;
    const reference::RMSNormBackward gradient =
        reference::rmsnorm_backward({}, {}, dy, residual, rstd, weight, {}, M, C);
    const auto loss = [&](const Array& r, const Array& w) {
        return reference::dot(dy, reference::rmsnorm_forward(r, {}, w, epsilon, M, C).y.value);
    };
    const Array by_residual =
        reference::numerical_gradient([&](const Array& r) { return loss(r, weight); }, residual);
    const Array by_weight =
        reference::numerical_gradient([&](const Array& w) { return loss(residual, w); }, weight);
    CHECK(reference::relative_distance(gradient.d_residual.value, by_residual) < 1e-8);
    CHECK(reference::relative_distance(gradient.dweight.value, by_weight) < 1e-8);
}

TEST_CASE("rmsnorm of zero, tiny and large residuals", "[residual_rmsnorm_forward][device]") {
    for (DType type : compute_types()) {
        for (double size : {0.0, 1e-12, 1e-3, 1e4, 1e15}) {
            const int64_t M = 2, C = 50;
            Random random(21);
            const Array residual = random.normals(M * C, DType::float32, size), weight(C, 1.0);
            const reference::RMSNormForward expected =
                reference::rmsnorm_forward(residual, {}, weight, epsilon, M, C);
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << ", size " << size);
                Bench bench(*device.backend);
                const Tensor y = bench.output("y", type, {M, C}),
                             rstd = bench.output("rstd", DType::float32, {M});
                device.backend->residual_rmsnorm_forward(
                    {.y = y,
                     .rstd = rstd,
                     .residual_in = bench.input("residual", residual, DType::float32, {M, C}),
                     .weight = bench.input("weight", weight, DType::float32, {C}),
                     .epsilon = epsilon});
                CHECK(difference(bench.read(y), expected.y, type, float32_sum(C)) == "");
                CHECK(difference(bench.read(rstd), plain(expected.rstd, absolute(expected.rstd)),
                                 DType::float32, float32_sum(C)) == "");
            }
        }
    }
}

TEST_CASE("rmsnorm shows NaN and infinity in their row",
          "[residual_rmsnorm_forward][rmsnorm_backward][device]") {
    const int64_t M = 3, C = 20;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                INFO(device.name << " " << name_of(type) << " " << special);
                Random random(22);
                Array residual = random.normals(M * C), branch = random.normals(M * C, type);
                branch[C + 4] = special;
                Bench bench(*device.backend);
                const Tensor y = bench.output("y", type, {M, C}),
                             rstd = bench.output("rstd", DType::float32, {M});
                const Tensor out = bench.output("residual_out", DType::float32, {M, C});
                const Tensor weight = bench.input("weight", Array(C, 1.0), DType::float32, {C});
                const Tensor in = bench.input("residual", residual, DType::float32, {M, C});
                const Tensor branch_in = bench.input("branch", branch, type, {M, C});
                device.backend->residual_rmsnorm_forward({.residual_out = out,
                                                          .y = y,
                                                          .rstd = rstd,
                                                          .residual_in = in,
                                                          .branch = branch_in,
                                                          .weight = weight,
                                                          .epsilon = epsilon});
                const Array y_out = bench.read(y);
                CHECK_FALSE(std::isfinite(bench.read(out)[C + 4]));
                CHECK_FALSE(std::isfinite(y_out[C + 4]));
                for (int64_t c = 0; c < C; ++c)
                    CHECK((std::isfinite(y_out[c]) && std::isfinite(y_out[2 * C + c])));

                const Tensor d_residual = bench.output("d_residual", DType::float32, {M, C});
                const Tensor dweight = bench.output("dweight", DType::float32, {C}),
                             dz = bench.output("dz", type, {M, C});
                device.backend->rmsnorm_backward(
                    {.d_residual = d_residual,
                     .dweight = dweight,
                     .dz = dz,
                     .dy = branch_in,
                     .residual = in,
                     .rstd = bench.input("rstd", Array(M, 1.0), DType::float32, {M}),
                     .weight = weight,
                     .workspace = bench.workspace(device.backend->rmsnorm_backward_workspace(M, C))});
                CHECK_FALSE(std::isfinite(bench.read(dweight)[4]));
                CHECK_FALSE(std::isfinite(bench.read(d_residual)[C + 4]));
                CHECK_FALSE(std::isfinite(bench.read(dz)[C + 4]));
                CHECK(std::isfinite(bench.read(d_residual)[4]));
            }
        }
    }
}

TEST_CASE("rmsnorm operations check their arguments",
          "[residual_rmsnorm_forward][rmsnorm_backward][contract][device]") {
    const int64_t M = 3, C = 4;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Array ones(M * C, 1.0);
            const Tensor in = bench.input("residual", ones, DType::float32, {M, C});
            const Tensor out = bench.output("residual_out", DType::float32, {M, C});
            const Tensor y = bench.output("y", type, {M, C}),
                         branch = bench.input("branch", ones, type, {M, C});
            const Tensor rstd = bench.update("rstd", Array(M, 1.0), DType::float32, {M});
            const Tensor weight = bench.input("weight", Array(C, 1.0), DType::float32, {C});
            using Tensors = std::vector<Tensor>;
            // Without a branch residual_out must be empty, and with one it must not.
            CHECK(contract_violations("residual_rmsnorm_forward", {out, y, rstd, in, branch, weight, weight},
                                      {5}, {}, [&](const Tensors& t) {
                                          backend.residual_rmsnorm_forward({.residual_out = t[0],
                                                                            .y = t[1],
                                                                            .rstd = t[2],
                                                                            .residual_in = t[3],
                                                                            .branch = t[4],
                                                                            .column_scale = t[5],
                                                                            .weight = t[6],
                                                                            .epsilon = epsilon});
                                      }) == "");
            const Tensor dweight = bench.output("dweight", DType::float32, {C}),
                         dz = bench.output("dz", type, {M, C});
            const Tensor scale = bench.input("column_scale", Array(C, 1.0), DType::float32, {C});
            void* workspace = bench.workspace(backend.rmsnorm_backward_workspace(M, C));
            CHECK(contract_violations("rmsnorm_backward", {out, dweight, dz, branch, in, rstd, weight, scale},
                                      {2, 7}, {}, [&](const Tensors& t) {
                                          backend.rmsnorm_backward({.d_residual = t[0],
                                                                    .dweight = t[1],
                                                                    .dz = t[2],
                                                                    .dy = t[3],
                                                                    .residual = t[4],
                                                                    .rstd = t[5],
                                                                    .weight = t[6],
                                                                    .column_scale = t[7],
                                                                    .workspace = workspace});
                                      }) == "");
        }
    }
}
