// Causal attention with grouped key/value heads, and its gradient.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/kernels/attention_fixture.h"
#include "test/support/catch.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Sequence lengths around the edges of likely tiles, with varied heads: G = H, G = 1, H/G = 3.
std::vector<AttentionShape> shapes(uint64_t seed) {
    Random random(seed);
    std::vector<AttentionShape> result = {
        {1, 1, 1, 1, 64},   {3, 1, 3, 1, 6},    {1, 2, 4, 4, 32},   {2, 31, 2, 1, 64}, {1, 32, 3, 1, 80},
        {2, 33, 2, 2, 6},   {1, 63, 1, 1, 128}, {1, 64, 6, 2, 32},  {2, 65, 2, 1, 64}, {1, 127, 3, 3, 6},
        {1, 130, 3, 1, 64}, {1, 257, 2, 1, 32}, {1, 257, 1, 1, 128}};
    const int64_t kv_heads = random.integer(1, 2);
    result.push_back({random.integer(1, 3), random.integer(3, 150), kv_heads * random.integer(1, 3), kv_heads,
                      2 * random.integer(1, 30)});
    return affordable(result, 25000, [](const AttentionShape& s) { return s.rows() * s.qkv_columns(); });
}

}  // namespace

TEST_CASE("attention_forward equals the double-precision formula", "[attention_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const AttentionShape& s : shapes(seed)) {
                Random random(seed + 50);
                const Array qkv = random.normals(s.rows() * s.qkv_columns(), type, 1.5);
                const reference::AttentionForward expected = reference::attention_forward(qkv, plain(s));
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << ", seed " << seed << ", " << text(s, type));
                    std::string damage;
                    const Outputs actual = run_forward(*device.backend, qkv, type, s, &damage);
                    CHECK(difference(actual.y, expected.y, type, slack(type, expected)) == "");
                    // The scores and the sum are float32 in either compute type.
                    CHECK(difference(actual.log_sum_exp, log_sum_exp_bound(expected), DType::float32,
                                     0x1p-20) == "");
                    CHECK(same.check(device, text(s, type) + " y", actual.y) == "");
                    CHECK(same.check(device, text(s, type) + " lse", actual.log_sum_exp) == "");
                    CHECK(damage == "");
                }
            }
        }
    }
}

TEST_CASE("attention_backward equals the double-precision formula", "[attention_backward][device]") {
    for (uint64_t seed : {3, 4}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const AttentionShape& s : shapes(seed)) {
                Random random(seed + 50);
                const Array qkv = random.normals(s.rows() * s.qkv_columns(), type);
                const Array dy = random.normals(s.rows() * s.heads * s.head_dim, type, 1e-2);
                const reference::AttentionForward forward = reference::attention_forward(qkv, plain(s));
                const Array y = reference::rounded(type, forward.y.value);
                const Array log_sum_exp = reference::rounded(DType::float32, forward.log_sum_exp);
                const reference::Result expected =
                    reference::attention_backward(dy, qkv, y, log_sum_exp, plain(s));
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << ", seed " << seed << ", " << text(s, type));
                    std::string damage;
                    const Array actual =
                        run_backward(*device.backend, dy, qkv, y, log_sum_exp, type, s, &damage);
                    CHECK(difference(actual, expected, type, slack(type, forward)) == "");
                    CHECK(same.check(device, text(s, type), actual) == "");
                    CHECK(damage == "");
                }
            }
        }
    }
}

TEST_CASE("the oracle of attention has the right gradient", "[attention_backward][oracle]") {
    for (const reference::Shape& shape : {reference::Shape{2, 4, 3, 1, 4}, reference::Shape{1, 5, 4, 2, 2}}) {
        Random random(55);
        const Array qkv = random.normals(shape.rows() * shape.qkv_columns());
        const Array dy = random.normals(shape.rows() * shape.y_columns());
        const reference::AttentionForward forward = reference::attention_forward(qkv, shape);
        const Array gradient =
            reference::attention_backward(dy, qkv, forward.y.value, forward.log_sum_exp, shape).value;
        const auto loss = [&](const Array& x) {
            return reference::dot(dy, reference::attention_forward(x, shape).y.value);
        };
        CHECK(reference::relative_distance(gradient, reference::numerical_gradient(loss, qkv)) < 1e-8);
    }
}

TEST_CASE("attention over equal keys is the running mean of the values", "[attention_forward][device]") {
    for (DType type : compute_types()) {
        const AttentionShape s{1, 100, 1, 1, 8};
        Array qkv;
        for (int t = 0; t < 100; ++t)
            for (int c = 0; c < 24; ++c) qkv.push_back(c < 8 ? 0.5 : c < 16 ? 1.0 : t);
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            const Outputs out = run_forward(*device.backend, qkv, type, s, nullptr);
            for (int t = 0; t < 100; ++t) {
                INFO("position " << t);
                const double mean = t / 2.0;
                CHECK(std::abs(out.y[t * 8 + 3] - mean) <=
                      (type == DType::bfloat16 ? 0x1p-7 : 1e-6) * mean + 1e-30);
                CHECK(std::abs(out.log_sum_exp[t] - (4 / std::sqrt(8.0) + std::log(t + 1.0))) < 1e-5);
            }
        }
    }
}

TEST_CASE("attention is causal and keeps sequences and heads apart",
          "[attention_forward][attention_backward][device]") {
    const AttentionShape s{2, 70, 4, 2, 16};
    const int64_t M = s.rows(), columns = s.qkv_columns(), width = s.heads * s.head_dim;
    for (DType type : compute_types()) {
        Random random(56);
        const Array qkv = random.normals(M * columns, type), dy = random.normals(M * width, type);
        Array changed = qkv;
        // Everything of sequence 0 from position 40 on, with numbers that would show anywhere.
        for (int64_t i = 40 * columns; i < 70 * columns; ++i)
            changed[i] = reference::round_to(type, 100 * random.normal());
        // Key/value head 1 of sequence 1: columns of G head 1 behind H query heads, and behind all keys.
        const int64_t key = (s.heads + 1) * s.head_dim, value = (s.heads + s.kv_heads + 1) * s.head_dim;
        for (int64_t t = 70; t < 140; ++t)
            for (int64_t i = 0; i < s.head_dim; ++i)
                for (int64_t column : {key + i, value + i})
                    changed[t * columns + column] = reference::round_to(type, 3 * random.normal());
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            const Outputs before = run_forward(*device.backend, qkv, type, s, nullptr);
            const Outputs after = run_forward(*device.backend, changed, type, s, nullptr);
            int wrong = 0, untouched = 0;
            for (int64_t row = 0; row < M; ++row) {
                for (int64_t c = 0; c < width; ++c) {
                    const bool may_change = row < 70 ? row >= 40 : c >= 2 * s.head_dim;
                    const bool same = before.y[row * width + c] == after.y[row * width + c];
                    wrong += !may_change && !same;
                    untouched += may_change && same;
                }
            }
            CHECK(wrong == 0);
            CHECK(untouched < 50);  // a bfloat16 may stay the same by chance

            // Without a gradient behind position 40, nothing behind it gets one, except its own queries'
            // zeros.
            Array early = dy;
            std::fill(early.begin() + 41 * width, early.begin() + 70 * width, 0.0);
            const Array d =
                run_backward(*device.backend, early, qkv, before.y, before.log_sum_exp, type, s, nullptr);
            int leaked = 0;
            for (int64_t i = 41 * columns; i < 70 * columns; ++i) leaked += d[i] != 0;
            CHECK(leaked == 0);
        }
    }
}

TEST_CASE("attention with huge scores picks the largest without overflow",
          "[attention_forward][attention_backward][device]") {
    const AttentionShape s{1, 66, 1, 1, 4};
    const int64_t T = s.sequence;
    for (DType type : compute_types()) {
        Array qkv(T * 12, 0.0), dy(T * 4, 1.0);
        Random random(57);
        for (int64_t t = 0; t < T; ++t) {
            // Scores of +-2e4: even keys win, and among them all are equal.
            qkv[t * 12] = 200;
            qkv[t * 12 + 4] = t % 2 == 0 ? 200 : -200;
            for (int i = 0; i < 4; ++i) qkv[t * 12 + 8 + i] = reference::round_to(type, random.normal());
        }
        const reference::AttentionForward expected = reference::attention_forward(qkv, plain(s));
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            const Outputs out = run_forward(*device.backend, qkv, type, s, nullptr);
            CHECK(difference(out.y, expected.y, type, slack(type, expected)) == "");
            CHECK(difference(out.log_sum_exp, log_sum_exp_bound(expected), DType::float32, 0x1p-20) == "");
            const Array d = run_backward(*device.backend, dy, qkv, out.y, out.log_sum_exp, type, s, nullptr);
            int infinite = 0;
            for (double value : d) infinite += !std::isfinite(value);
            CHECK(infinite == 0);
        }
    }
}

TEST_CASE("attention shows NaN and infinity from their position on",
          "[attention_forward][attention_backward][device]") {
    const AttentionShape s{2, 40, 2, 1, 8};
    const int64_t columns = s.qkv_columns(), width = s.heads * s.head_dim;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                for (const std::string where : {"query", "key", "value"}) {
                    INFO(device.name << " " << name_of(type) << " " << special << " in " << where);
                    Random random(58);
                    Array qkv = random.normals(s.rows() * columns, type);
                    const Array dy = random.normals(s.rows() * width, type);
                    const int64_t column = where == "query" ? 3 : where == "key" ? 16 + 3 : 24 + 3;
                    qkv[20 * columns + column] = special;
                    const Outputs out = run_forward(*device.backend, qkv, type, s, nullptr);
                    int special_at_position = 0, in_the_other_sequence = 0;
                    for (int64_t c = 0; c < width; ++c)
                        special_at_position += !std::isfinite(out.y[20 * width + c]);
                    for (int64_t i = 40 * width; i < 80 * width; ++i)
                        in_the_other_sequence += !std::isfinite(out.y[i]);
                    // An infinite key with a negative score is merely out of the running, hence "some head".
                    if (where != "key" || std::isnan(special)) CHECK(special_at_position > 0);
                    bool any = false;
                    for (int64_t i = 20 * width; i < 40 * width; ++i) any = any || !std::isfinite(out.y[i]);
                    CHECK(any);
                    CHECK(in_the_other_sequence == 0);
                    const Array d =
                        run_backward(*device.backend, dy, qkv, out.y, out.log_sum_exp, type, s, nullptr);
                    bool any_gradient = false;
                    for (int64_t i = 0; i < 40 * columns; ++i)
                        any_gradient = any_gradient || !std::isfinite(d[i]);
                    CHECK(any_gradient);
                }
            }
        }
    }
}

TEST_CASE("attention operations check their arguments",
          "[attention_forward][attention_backward][contract][device]") {
    const AttentionShape s{2, 3, 4, 2, 4};
    const int64_t M = s.rows(), columns = s.qkv_columns(), width = s.heads * s.head_dim;
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Tensor qkv = bench.input("qkv", Array(M * columns, 1.0), type, {M, columns});
            const Tensor dqkv = bench.output("dqkv", type, {M, columns});
            const Tensor y = bench.update("y", Array(M * width, 1.0), type, {M, width});
            const Tensor dy = bench.input("dy", Array(M * width, 1.0), type, {M, width});
            const Tensor log_sum_exp = bench.update("log_sum_exp", Array(24, 1.0), DType::float32, {2, 4, 3});
            using Tensors = std::vector<Tensor>;
            CHECK(contract_violations("attention_forward", {y, log_sum_exp, qkv}, {}, {},
                                      [&](const Tensors& t) {
                                          backend.attention_forward(
                                              {.y = t[0], .log_sum_exp = t[1], .qkv = t[2], .shape = s});
                                      }) == "");
            void* workspace = bench.workspace(backend.attention_backward_workspace(s));
            CHECK(contract_violations("attention_backward", {dqkv, dy, qkv, y, log_sum_exp}, {}, {},
                                      [&](const Tensors& t) {
                                          backend.attention_backward({.dqkv = t[0],
                                                                      .dy = t[1],
                                                                      .qkv = t[2],
                                                                      .y = t[3],
                                                                      .log_sum_exp = t[4],
                                                                      .shape = s,
                                                                      .workspace = workspace});
                                      }) == "");
            const AttentionShape uneven{2, 3, 3, 2, 4};  // H is no multiple of G
            const Tensor uneven_qkv = bench.input("qkv", Array(M * 28, 1.0), type, {M, 28});
            const Tensor uneven_y = bench.output("y", type, {M, 12});
            const Tensor uneven_log = bench.output("log_sum_exp", DType::float32, {2, 3, 3});
            CHECK(contract_violation("attention_forward", [&] {
                      backend.attention_forward(
                          {.y = uneven_y, .log_sum_exp = uneven_log, .qkv = uneven_qkv, .shape = uneven});
                  }) == "");
        }
    }
}
