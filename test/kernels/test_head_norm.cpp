// RMSNorm of each query and key head, and its gradient.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr float epsilon = 1e-6f;

reference::Shape reference_shape(const AttentionShape& s) {
    return {s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
}

std::vector<AttentionShape> shapes(uint64_t seed) {
    Random random(seed);
    const int64_t G = random.integer(1, 3);
    return affordable(std::vector<AttentionShape>{{1, 1, 1, 1, 2},
                                                  {2, 3, 2, 1, 4},
                                                  {1, 5, 4, 2, 6},
                                                  {1, 1, 3, 3, 64},
                                                  {2, 17, 6, 2, 32},
                                                  {1, 40, 2, 1, 128},
                                                  {3, 1, 2, 2, 256},
                                                  {1, 2, 1, 1, 250},
                                                  {1, 3, 70, 35, 34},
                                                  {1, 18, 16, 8, 80},
                                                  {random.integer(1, 3), random.integer(1, 40),
                                                   G * random.integer(1, 3), G, 2 * random.integer(1, 40)}},
                      10000, [](const AttentionShape& s) { return s.rows() * s.qkv_columns(); });
}

std::string text(const AttentionShape& s, DType type, int mode) {
    return std::string(name_of(type)) + ", B " + std::to_string(s.batch) + " T " +
           std::to_string(s.sequence) + " H " + std::to_string(s.heads) + " G " + std::to_string(s.kv_heads) +
           " D " + std::to_string(s.head_dim) + ", mode " + std::to_string(mode);
}

// The inputs of both directions.
struct Problem {
    Array x, dy, column_scale, query_weight, key_weight;
    Problem(const AttentionShape& s, DType type, bool scaled, uint64_t seed) {
        Random random(seed);
        x = random.normals(s.rows() * s.qkv_columns(), type, 2);
        dy = random.normals(s.rows() * s.qkv_columns(), type, 1e-2);
        if (scaled) column_scale = random.scales(s.qkv_columns(), 0.5);
        query_weight = random.normals(s.head_dim);
        key_weight = random.normals(s.head_dim);
    }
    reference::HeadNormForward forward(const AttentionShape& s) const {
        return reference::head_norm_forward(x, column_scale, query_weight, key_weight, epsilon,
                                            reference_shape(s));
    }
};

// The memory of one run: what both directions read.
struct Inputs {
    Tensor x, column_scale, query_weight, key_weight;
    Inputs(Bench& bench, const Problem& p, const AttentionShape& s, DType type)
        : x(bench.input("x", p.x, type, {s.rows(), s.qkv_columns()})),
          column_scale(
              bench.optional_input("column_scale", p.column_scale, DType::float32, {s.qkv_columns()})),
          query_weight(bench.input("query_weight", p.query_weight, DType::float32, {s.head_dim})),
          key_weight(bench.input("key_weight", p.key_weight, DType::float32, {s.head_dim})) {}
};

void run_forward(Bench& bench, const Inputs& in, const Tensor& y, const Tensor& rstd,
                 const AttentionShape& s) {
    bench.backend().head_norm_forward({.y = y,
                                       .rstd = rstd,
                                       .x = in.x,
                                       .column_scale = in.column_scale,
                                       .query_weight = in.query_weight,
                                       .key_weight = in.key_weight,
                                       .epsilon = epsilon,
                                       .shape = s});
}

struct Gradients {
    Tensor dx, dquery_weight, dkey_weight;
};

void run_backward(Bench& bench, const Inputs& in, const Gradients& out, const Tensor& dy, const Tensor& rstd,
                  bool accumulate, const AttentionShape& s) {
    bench.backend().head_norm_backward(
        {.dx = out.dx,
         .dquery_weight = out.dquery_weight,
         .dkey_weight = out.dkey_weight,
         .dy = dy,
         .x = in.x,
         .rstd = rstd,
         .column_scale = in.column_scale,
         .query_weight = in.query_weight,
         .key_weight = in.key_weight,
         .accumulate_weight = accumulate,
         .workspace = bench.workspace(bench.backend().head_norm_backward_workspace(s)),
         .shape = s});
}

}  // namespace

TEST_CASE("head_norm_forward equals the double-precision formula", "[head_norm_forward][device]") {
    SameBits same;
    for (DType type : compute_types()) {
        for (const AttentionShape& s : shapes(80)) {
            for (int scaled = 0; scaled < 2; ++scaled) {
                const Problem p(s, type, scaled, 81);
                const reference::HeadNormForward expected = p.forward(s);
                reference::Result expected_rstd;
                expected_rstd.value = expected_rstd.magnitude = expected.rstd;
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    const std::string label = text(s, type, scaled);
                    INFO(device.name << " " << label);
                    Bench bench(*device.backend);
                    const Tensor y = bench.output("y", type, {s.rows(), s.qkv_columns()});
                    const Tensor rstd = bench.output("rstd", DType::float32, {s.rows(), s.normed_heads()});
                    run_forward(bench, Inputs(bench, p, s, type), y, rstd, s);
                    const double slack = float32_sum(s.head_dim);
                    CHECK(difference(bench.read(y), expected.y, type, slack) == "");
                    CHECK(difference(bench.read(rstd), expected_rstd, DType::float32, slack) == "");
                    CHECK(same.check(device, label, bench.read(y)) == "");
                    CHECK(same.check(device, label + " rstd", bench.read(rstd)) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("head_norm_backward equals the double-precision formula, also in place",
          "[head_norm_backward][device]") {
    SameBits same;
    for (DType type : compute_types()) {
        for (const AttentionShape& s : shapes(82)) {
            for (int mode = 0; mode < 8; ++mode) {
                const bool scaled = mode & 1, accumulate = mode & 2, in_place = mode & 4;
                const Problem p(s, type, scaled, 83);
                const Array rstd = reference::rounded(DType::float32, p.forward(s).rstd);
                Random random(84);
                const Array query_before = random.normals(s.head_dim),
                            key_before = random.normals(s.head_dim);
                const reference::HeadNormBackward expected = reference::head_norm_backward(
                    accumulate ? query_before : Array(), accumulate ? key_before : Array(), p.dy, p.x, rstd,
                    p.column_scale, p.query_weight, p.key_weight, reference_shape(s));
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    // In place or not: the same bits.
                    const std::string label = text(s, type, mode % 4);
                    INFO(device.name << " " << label << ", in place " << in_place);
                    Bench bench(*device.backend);
                    const Tensor dy = in_place ? bench.update("dy", p.dy, type, {s.rows(), s.qkv_columns()})
                                               : bench.input("dy", p.dy, type, {s.rows(), s.qkv_columns()});
                    Gradients out{dy, {}, {}};
                    if (!in_place) out.dx = bench.output("dx", type, {s.rows(), s.qkv_columns()});
                    const auto weight_gradient = [&](const char* name, const Array& before) {
                        return accumulate ? bench.update(name, before, DType::float32, {s.head_dim})
                                          : bench.output(name, DType::float32, {s.head_dim});
                    };
                    out.dquery_weight = weight_gradient("dquery_weight", query_before);
                    out.dkey_weight = weight_gradient("dkey_weight", key_before);
                    const Tensor rstd_in =
                        bench.input("rstd", rstd, DType::float32, {s.rows(), s.normed_heads()});
                    run_backward(bench, Inputs(bench, p, s, type), out, dy, rstd_in, accumulate, s);
                    const double weight_slack = float32_sum(s.rows() * s.heads);
                    CHECK(difference(bench.read(out.dx), expected.dx, type, float32_sum(s.head_dim)) == "");
                    CHECK(difference(bench.read(out.dquery_weight), expected.dquery_weight, DType::float32,
                                     weight_slack) == "");
                    CHECK(difference(bench.read(out.dkey_weight), expected.dkey_weight, DType::float32,
                                     weight_slack) == "");
                    CHECK(same.check(device, label, bench.read(out.dx)) == "");
                    CHECK(same.check(device, label + " queries", bench.read(out.dquery_weight)) == "");
                    CHECK(same.check(device, label + " keys", bench.read(out.dkey_weight)) == "");
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}

TEST_CASE("the oracle of head norms has the right gradient", "[head_norm_backward][oracle]") {
    const AttentionShape s{2, 2, 4, 2, 6};
    const Problem p(s, DType::float32, true, 85);
    const Array rstd = p.forward(s).rstd;
    const reference::HeadNormBackward gradient = reference::head_norm_backward(
        {}, {}, p.dy, p.x, rstd, p.column_scale, p.query_weight, p.key_weight, reference_shape(s));
    const auto numerical = [&](Array Problem::*member) {
        return reference::numerical_gradient(
            [&](const Array& values) {
                Problem changed = p;
                changed.*member = values;
                return reference::dot(p.dy, changed.forward(s).y.value);
            },
            p.*member);
    };
    CHECK(reference::relative_distance(gradient.dx.value, numerical(&Problem::x)) < 1e-7);
    CHECK(reference::relative_distance(gradient.dquery_weight.value, numerical(&Problem::query_weight)) <
          1e-7);
    CHECK(reference::relative_distance(gradient.dkey_weight.value, numerical(&Problem::key_weight)) < 1e-7);
}

TEST_CASE("head norms do by hand what the formula says", "[head_norm_forward][device]") {
    const AttentionShape s{1, 1, 1, 1, 2};
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        INFO(device.name);
        Bench bench(*device.backend);
        const Tensor y = bench.output("y", DType::float32, {1, 6});
        const Tensor rstd = bench.output("rstd", DType::float32, {1, 2});
        // Mean squares 25/2 and, after the scales, 4: without epsilon.
        device.backend->head_norm_forward(
            {.y = y,
             .rstd = rstd,
             .x = bench.input("x", {3, 4, 1, -1, 5, 6}, DType::float32, {1, 6}),
             .column_scale = bench.input("column_scale", {1, 1, 2, 2, 10, 100}, DType::float32, {6}),
             .query_weight = bench.input("query_weight", {0, 0}, DType::float32, {2}),
             .key_weight = bench.input("key_weight", {7, 8}, DType::float32, {2}),
             .shape = s});
        CHECK(inequality(bench.read(y), {0, 0, 7, -8, 50, 600}) == "");
        CHECK(bench.read(rstd)[1] == 0.5);
    }
}

TEST_CASE("head norms give the same at odd addresses", "[head_norm_forward][head_norm_backward][device]") {
    const AttentionShape s{1, 19, 4, 2, 16};
    const int64_t M = s.rows(), columns = s.qkv_columns();
    for (DType type : compute_types()) {
        const Problem p(s, type, true, 86);
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            SameBits same;
            for (int64_t shift : {0, 1}) {
                Bench bench(*device.backend);
                const auto shifted = [&](const Tensor& memory) {
                    return Tensor(static_cast<char*>(memory.data) + shift * size_of(type), type,
                                  {M, columns});
                };
                const Inputs in(bench, p, s, type);
                const Tensor y = shifted(bench.output("y", type, {M * columns + shift}));
                const Tensor dx = shifted(bench.output("dx", type, {M * columns + shift}));
                const Tensor rstd = bench.output("rstd", DType::float32, {M, s.normed_heads()});
                const Tensor dquery = bench.output("dquery_weight", DType::float32, {s.head_dim});
                const Tensor dkey = bench.output("dkey_weight", DType::float32, {s.head_dim});
                run_forward(bench, in, y, rstd, s);
                run_backward(bench, in, {dx, dquery, dkey}, bench.input("dy", p.dy, type, {M, columns}), rstd,
                             false, s);
                CHECK(same.check(device, "y", bench.read(y)) == "");
                CHECK(same.check(device, "dx", bench.read(dx)) == "");
                CHECK(same.check(device, "queries", bench.read(dquery)) == "");
                CHECK(same.check(device, "keys", bench.read(dkey)) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("head norms show NaN and infinity in their head only",
          "[head_norm_forward][head_norm_backward][device]") {
    const AttentionShape s{1, 2, 2, 1, 8};
    const int64_t columns = s.qkv_columns(), D = s.head_dim;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                for (int64_t head = 0; head < 4; ++head) {
                    INFO(device.name << " " << name_of(type) << " " << special << ", head " << head);
                    const int64_t place = columns + head * D + 3;
                    Problem p(s, type, false, 87);
                    const Array rstd = reference::rounded(DType::float32, p.forward(s).rstd);
                    const Array finite_x = p.x;
                    p.x[place] = p.dy[place] = special;
                    Bench bench(*device.backend);
                    const Tensor y = bench.output("y", type, {2, columns}),
                                 dx = bench.output("dx", type, {2, columns});
                    const Tensor dquery = bench.output("dquery_weight", DType::float32, {D});
                    const Tensor dkey = bench.output("dkey_weight", DType::float32, {D});
                    run_forward(bench, Inputs(bench, p, s, type), y,
                                bench.output("rstd", DType::float32, {2, 3}), s);
                    p.x = finite_x;
                    run_backward(bench, Inputs(bench, p, s, type), {dx, dquery, dkey},
                                 bench.input("dy", p.dy, type, {2, columns}),
                                 bench.input("rstd", rstd, DType::float32, {2, 3}), false, s);
                    // Values each by themselves. An infinite number makes zeros of the others of its head.
                    const Array forward = bench.read(y), backward = bench.read(dx);
                    for (int64_t i = 0; i < 2 * columns; ++i) {
                        const bool same_head = i / D == place / D;
                        if (!same_head || (head == 3 && i != place)) {
                            CHECK(std::isfinite(forward[i]));
                            CHECK(std::isfinite(backward[i]));
                        }
                    }
                    CHECK(!std::isfinite(forward[place]));
                    CHECK(!std::isfinite(backward[place]));
                    const Array of_queries = bench.read(dquery), of_keys = bench.read(dkey);
                    for (int64_t i = 0; i < D; ++i) {
                        CHECK(std::isfinite(of_queries[i]) == !(head < 2 && i == 3));
                        CHECK(std::isfinite(of_keys[i]) == !(head == 2 && i == 3));
                    }
                }
            }
        }
    }
}

TEST_CASE("head norms check their arguments", "[head_norm_forward][head_norm_backward][contract][device]") {
    const AttentionShape s{2, 3, 4, 2, 4};
    const int64_t M = s.rows(), columns = s.qkv_columns();
    for (DType type : compute_types()) {
        const Problem p(s, type, true, 88);
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            const Inputs in(bench, p, s, type);
            const Tensor y = bench.output("y", type, {M, columns});
            const Tensor dy = bench.input("dy", p.dy, type, {M, columns});
            const Tensor rstd = bench.update("rstd", Array(M * 6, 1.0), DType::float32, {M, 6});
            const Tensor dquery = bench.output("dquery_weight", DType::float32, {s.head_dim});
            const Tensor dkey = bench.output("dkey_weight", DType::float32, {s.head_dim});
            void* workspace = bench.workspace(device.backend->head_norm_backward_workspace(s));
            using Tensors = std::vector<Tensor>;
            const auto forward = [&](const Tensors& t, const AttentionShape& shape) {
                device.backend->head_norm_forward({.y = t[0],
                                                   .rstd = t[1],
                                                   .x = t[2],
                                                   .column_scale = t[3],
                                                   .query_weight = t[4],
                                                   .key_weight = t[5],
                                                   .epsilon = epsilon,
                                                   .shape = shape});
            };
            const Tensors arguments = {y, rstd, in.x, in.column_scale, in.query_weight, in.key_weight};
            CHECK(contract_violations("head_norm_forward", arguments, {3}, {},
                                      [&](const Tensors& t) { forward(t, s); }) == "");
            const auto backward = [&](const Tensors& t) {
                device.backend->head_norm_backward({.dx = t[0],
                                                    .dquery_weight = t[1],
                                                    .dkey_weight = t[2],
                                                    .dy = t[3],
                                                    .x = t[4],
                                                    .rstd = t[5],
                                                    .column_scale = t[6],
                                                    .query_weight = t[7],
                                                    .key_weight = t[8],
                                                    .workspace = workspace,
                                                    .shape = s});
            };
            CHECK(contract_violations(
                      "head_norm_backward",
                      {y, dquery, dkey, dy, in.x, rstd, in.column_scale, in.query_weight, in.key_weight}, {6},
                      {}, backward) == "");
            CHECK(contract_violation("head_norm_forward", [&] {  // in place
                      forward({in.x, rstd, in.x, in.column_scale, in.query_weight, in.key_weight}, s);
                  }) == "");
            for (const auto& [heads, head_dim] :
                 std::vector<std::pair<int64_t, int64_t>>{{3, 4}, {4, 3}, {4, 258}}) {
                AttentionShape wrong = s;
                wrong.heads = heads;
                wrong.head_dim = head_dim;
                CHECK(contract_violation("head_norm_forward", [&] { forward(arguments, wrong); }) == "");
            }
        }
    }
}

TEST_CASE("head norms say how large a head may be", "[head_norm_forward][contract][device]") {
    const AttentionShape s{1, 1, 1, 1, most_normed_head_dim + 2};
    const Problem p(s, DType::float32, false, 89);
    for (const BackendUnderTest& device : backends_under_test(DType::float32)) {
        Bench bench(*device.backend);
        const Inputs in(bench, p, s, DType::float32);
        CHECK_THROWS_WITH(run_forward(bench, in, bench.output("y", DType::float32, {1, s.qkv_columns()}),
                                      bench.output("rstd", DType::float32, {1, 2}), s),
                          "head_norm_forward: needs a head dimension of at most 256, not 258");
    }
}
