// Rotary position embedding and its gradient.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

std::vector<AttentionShape> shapes(uint64_t seed) {
    Random random(seed);
    std::vector<AttentionShape> result = {{1, 1, 1, 1, 2},    {2, 1, 3, 3, 6},  {1, 2, 3, 1, 32},
                                          {2, 33, 2, 2, 80},  {3, 65, 6, 2, 6}, {2, 130, 3, 1, 64},
                                          {1, 257, 4, 4, 128}};
    const int64_t kv_heads = random.integer(1, 3);
    result.push_back({random.integer(1, 3), random.integer(1, 90), kv_heads * random.integer(1, 4), kv_heads,
                      2 * random.integer(1, 40)});
    return affordable(result, 20000, [](const AttentionShape& s) { return s.rows() * s.qkv_columns(); });
}

reference::Shape plain(const AttentionShape& s) {
    return {s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
}

std::string text(const AttentionShape& s) {
    return "B " + std::to_string(s.batch) + " T " + std::to_string(s.sequence) + " H " +
           std::to_string(s.heads) + " G " + std::to_string(s.kv_heads) + " D " + std::to_string(s.head_dim);
}

// Tables as the model passes them: float32, and for more positions than the sequence has.
reference::RopeTables tables_for(const AttentionShape& s, int64_t positions) {
    reference::RopeTables tables = reference::rope_tables(positions, s.head_dim, 10000);
    tables.cosines = reference::rounded(DType::float32, tables.cosines);
    tables.sines = reference::rounded(DType::float32, tables.sines);
    return tables;
}

}  // namespace

TEST_CASE("rope turns queries and keys and leaves values alone", "[rope_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const AttentionShape& s : shapes(seed)) {
                for (int64_t longer : {0, 5}) {
                    Random random(seed);
                    const int64_t M = s.rows(), columns = s.qkv_columns(), T = s.sequence + longer,
                                  half = s.head_dim / 2;
                    const reference::RopeTables tables = tables_for(s, T);
                    const Array qkv = random.normals(M * columns, type);
                    const Array column_scale = longer > 0 ? random.scales(columns, 0.5) : Array();
                    const Array scaled = reference::scale_columns(qkv, column_scale);
                    const reference::Result expected = reference::rope_forward(scaled, tables, plain(s));
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", " << text(s)
                                         << ", table " << T);
                        Bench bench(*device.backend);
                        const Tensor data = bench.update("qkv", qkv, type, {M, columns});
                        device.backend->rope_forward(
                            {.qkv = data,
                             .cosines = bench.input("cosines", tables.cosines, DType::float32, {T, half}),
                             .sines = bench.input("sines", tables.sines, DType::float32, {T, half}),
                             .column_scale = bench.optional_input("column_scale", column_scale,
                                                                  DType::float32, {columns}),
                             .shape = s});
                        const Array actual = bench.read(data);
                        CHECK(difference(actual, expected, type, 0x1p-22) == "");
                        const int64_t first_value = (s.heads + s.kv_heads) * s.head_dim;
                        int changed_values = 0;
                        for (int64_t i = 0; i < M * columns; ++i)
                            changed_values += i % columns >= first_value &&
                                              actual[i] != reference::rounded(type, {scaled[i]})[0];
                        CHECK(changed_values == 0);
                        CHECK(same.check(device, text(s) + name_of(type) + std::to_string(longer), actual) ==
                              "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("rope_backward turns back and scales every column", "[rope_backward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (DType type : compute_types()) {
            for (const AttentionShape& s : shapes(seed + 10)) {
                for (bool scaled : {false, true}) {
                    Random random(seed);
                    const int64_t M = s.rows(), columns = s.qkv_columns(), T = s.sequence + 1,
                                  half = s.head_dim / 2;
                    const reference::RopeTables tables = tables_for(s, T);
                    const Array dqkv = random.normals(M * columns, type, 1e-3);
                    const Array column_scale = scaled ? random.scales(columns, 0.1) : Array();
                    const reference::Result expected =
                        reference::rope_backward(dqkv, tables, column_scale, plain(s));
                    for (const BackendUnderTest& device : backends_under_test(type)) {
                        INFO(device.name << " " << name_of(type) << ", seed " << seed << ", " << text(s)
                                         << ", scaled " << scaled);
                        Bench bench(*device.backend);
                        const Tensor data = bench.update("dqkv", dqkv, type, {M, columns});
                        device.backend->rope_backward(
                            {.dqkv = data,
                             .cosines = bench.input("cosines", tables.cosines, DType::float32, {T, half}),
                             .sines = bench.input("sines", tables.sines, DType::float32, {T, half}),
                             .column_scale = bench.optional_input("column_scale", column_scale,
                                                                  DType::float32, {columns}),
                             .shape = s});
                        const Array actual = bench.read(data);
                        CHECK(difference(actual, expected, type, 0x1p-22) == "");
                        CHECK(same.check(device, text(s) + name_of(type) + std::to_string(scaled), actual) ==
                              "");
                        CHECK(bench.damage() == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("rope by hand: a quarter turn, and position zero", "[rope_forward][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        // One head of four numbers, T = 2; at t = 1 pair (0, 2) turns by 90 degrees and pair (1, 3) by 180.
        Bench bench(*device.backend);
        const Array row = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
        Array qkv = row;
        qkv.insert(qkv.end(), row.begin(), row.end());
        const Tensor data = bench.update("qkv", qkv, DType::float32, {2, 12});
        device.backend->rope_forward(
            {.qkv = data,
             .cosines = bench.input("cosines", {1, 1, 0, -1}, DType::float32, {2, 2}),
             .sines = bench.input("sines", {0, 0, 1, 0}, DType::float32, {2, 2}),
             .shape = {1, 2, 1, 1, 4}});
        Array expected = row;
        for (double value : {-3, -2, 1, -4, -7, -6, 5, -8, 9, 10, 11, 12}) expected.push_back(value);
        CHECK(inequality(bench.read(data), expected) == "");
    }
}

TEST_CASE("the oracle of rope has the right gradient and keeps lengths and relative positions",
          "[rope_forward][rope_backward][oracle]") {
    const reference::Shape shape{2, 4, 2, 1, 6};
    Random random(30);
    const reference::RopeTables tables = reference::rope_tables(4, 6, 100);
    const int64_t count = shape.rows() * shape.qkv_columns();
    const Array qkv = random.normals(count), d = random.normals(count);
    const auto loss = [&](const Array& x) {
        return reference::dot(d, reference::rope_forward(x, tables, shape).value);
    };
    CHECK(reference::relative_distance(reference::rope_backward(d, tables, {}, shape).value,
                                       reference::numerical_gradient(loss, qkv, 1e-3)) < 1e-9);
    const Array turned = reference::rope_forward(qkv, tables, shape).value;
    CHECK(std::abs(reference::dot(turned, turned) - reference::dot(qkv, qkv)) < 1e-9);

    // The same query and key at all positions: their product depends only on the distance.
    const int64_t columns = shape.qkv_columns();
    Array repeated;
    for (int64_t row = 0; row < shape.rows(); ++row)
        repeated.insert(repeated.end(), qkv.begin(), qkv.begin() + columns);
    const Array r = reference::rope_forward(repeated, tables, shape).value;
    const auto product = [&](int64_t t, int64_t u) {
        double sum = 0;
        for (int64_t i = 0; i < 6; ++i) sum += r[t * columns + i] * r[u * columns + 12 + i];
        return sum;
    };
    CHECK(std::abs(product(2, 1) - product(3, 2)) < 1e-12);
    CHECK(std::abs(product(1, 0) - product(3, 2)) < 1e-12);
    CHECK(std::abs(product(1, 0) - product(0, 1)) > 1e-6);
}

TEST_CASE("rope shows NaN and infinity in their pair only", "[rope_forward][rope_backward][device]") {
    const AttentionShape s{1, 2, 1, 1, 8};
    const reference::RopeTables tables = reference::rope_tables(2, 8, 10000);
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            for (double special : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
                for (bool backward : {false, true}) {
                    INFO(device.name << " " << name_of(type) << " " << special << ", backward " << backward);
                    Random random(31);
                    Array qkv = random.normals(2 * 24, type);
                    qkv[24 + 1] = special;
                    Bench bench(*device.backend);
                    const Tensor data = bench.update("qkv", qkv, type, {2, 24});
                    const Tensor cosines =
                        bench.input("cosines", reference::rounded(DType::float32, tables.cosines),
                                    DType::float32, {2, 4});
                    const Tensor sines = bench.input(
                        "sines", reference::rounded(DType::float32, tables.sines), DType::float32, {2, 4});
                    if (backward)
                        device.backend->rope_backward(
                            {.dqkv = data, .cosines = cosines, .sines = sines, .shape = s});
                    else
                        device.backend->rope_forward(
                            {.qkv = data, .cosines = cosines, .sines = sines, .shape = s});
                    const Array actual = bench.read(data);
                    for (int i = 0; i < 48; ++i) CHECK(std::isfinite(actual[i]) == (i != 25 && i != 29));
                }
            }
        }
    }
}

TEST_CASE("rope operations check their arguments", "[rope_forward][rope_backward][contract][device]") {
    const AttentionShape s{2, 3, 4, 2, 4};
    const int64_t M = s.rows(), columns = s.qkv_columns();
    for (DType type : compute_types()) {
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Tensor qkv = bench.update("qkv", Array(M * columns, 1.0), type, {M, columns});
            const Tensor cosines = bench.input("cosines", Array(6, 1.0), DType::float32, {3, 2});
            const Tensor sines = bench.input("sines", Array(6, 0.0), DType::float32, {3, 2});
            const Tensor scale = bench.input("column_scale", Array(columns, 1.0), DType::float32, {columns});
            using Tensors = std::vector<Tensor>;
            CHECK(
                contract_violations(
                    "rope_forward", {qkv, cosines, sines, scale}, {3}, {0}, [&](const Tensors& t) {
                        backend.rope_forward(
                            {.qkv = t[0], .cosines = t[1], .sines = t[2], .column_scale = t[3], .shape = s});
                    }) == "");
            CHECK(
                contract_violations(
                    "rope_backward", {qkv, cosines, sines, scale}, {3}, {0}, [&](const Tensors& t) {
                        backend.rope_backward(
                            {.dqkv = t[0], .cosines = t[1], .sines = t[2], .column_scale = t[3], .shape = s});
                    }) == "");
            AttentionShape wrong = s;
            wrong.heads = 3;  // not a multiple of G
            const Tensor narrow =
                bench.update("qkv", Array(M * wrong.qkv_columns(), 1.0), type, {M, wrong.qkv_columns()});
            CHECK(contract_violation("rope_forward", [&] {
                      backend.rope_forward(
                          {.qkv = narrow, .cosines = cosines, .sines = sines, .shape = wrong});
                  }) == "");
        }
    }
}
