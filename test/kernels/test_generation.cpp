// The operations of generation: matmuls of few rows with packed weights, look-ups, attention to cached positions.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/packed_matrix.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct Sizes {
    int64_t M, N, K;
    Grid grid;
    int64_t group;
    DType dtype;
};

std::string text(const Sizes& s) {
    return "M " + std::to_string(s.M) + " N " + std::to_string(s.N) + " K " + std::to_string(s.K) +
           " group " + std::to_string(s.group) + " " +
           (s.grid == Grid::none ? name_of(s.dtype) : reference::name_of(s.grid));
}

// Every grid and plain type with one row and several, odd sizes, whole rows and groups.
std::vector<Sizes> sizes(uint64_t seed) {
    Random random(seed);
    std::vector<Sizes> sizes;
    const auto add = [&](Grid grid, DType dtype) {
        for (int64_t M : {int64_t{1}, random.integer(2, 9)})
            for (int64_t group : {0, 8 * static_cast<int>(random.integer(1, 6)), 32, 64, 128}) {
                if (grid == Grid::none && group > 0) continue;
                const int64_t K = group == 0 ? random.integer(1, 1400) : group * random.integer(2, 9);
                sizes.push_back({M, random.integer(1, 40), K, grid, group == 0 ? K : group, dtype});
            }
    };
    for (Grid grid : reference::quantized_grids()) add(grid, DType::float32);
    add(Grid::none, DType::float32);
    add(Grid::none, DType::bfloat16);
    sizes.push_back({1, 1, 1, Grid::integer4, 1, DType::float32});
    sizes.push_back({37, 5, 130, Grid::integer4, 130, DType::float32});
    return affordable(sizes, 20000, [](const Sizes& s) { return s.M * s.N * s.K; });
}

// y = x wᵀ. Backends may round x by 2^-23 of the largest magnitude of its row, and sum codes and lowest levels apart.
reference::Result expected_product(const Array& x, const HostPackedMatrix& host, int64_t M) {
    const int64_t N = host.matrix.rows, K = host.matrix.columns;
    reference::Result result(M * N);
    for (int64_t m = 0; m < M; ++m) {
        double largest = 0;
        for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::abs(x[m * K + k]));
        for (int64_t n = 0; n < N; ++n)
            for (int64_t k = 0; k < K; ++k) {
                const int64_t i = n * K + k;
                const double scale = host.scales.empty() ? 0 : host.scales[i / host.matrix.group];
                result.value[m * N + n] += x[m * K + k] * host.weights[i];
                result.magnitude[m * N + n] += largest * (std::abs(host.weights[i]) + scale * host.lowest());
            }
    }
    return result;
}

// One position after the other, with the oracle of whole sequences.
Array expected_attention(const Array& qkv, const reference::Shape& shape) {
    return reference::attention_forward(qkv, shape).y.value;
}

}  // namespace

TEST_CASE("packed_matmul_forward equals the double-precision product", "[packed_matmul_forward][device]") {
    for (uint64_t seed : {1, 2}) {
        SameBits same;
        for (const Sizes& s : sizes(seed)) {
            Random random(seed + s.K);
            const HostPackedMatrix host = random_packed(random, s.N, s.K, s.grid, s.group, s.dtype);
            const Array x = random.normals(s.M * s.K);
            const reference::Result expected = expected_product(x, host, s.M);
            for (const BackendUnderTest& device : backends_under_test()) {
                INFO(device.name << " " << text(s));
                Bench bench(*device.backend);
                const PackedMatrix weight = place(bench, host);
                const Tensor y = bench.output("y", DType::float32, {s.M, s.N});
                device.backend->packed_matmul_forward(
                    {.y = y, .x = bench.input("x", x, DType::float32, {s.M, s.K}), .weight = weight});
                const Array actual = bench.read(y);
                CHECK(difference(actual, expected, DType::float32, float32_sum(s.K)) == "");
                CHECK(same.check(device, text(s), actual) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("rows of packed_matmul_forward do not depend on each other", "[packed_matmul_forward][device]") {
    const int64_t M = 7, N = 11, K = 96;
    for (Grid grid : {Grid::integer4, Grid::none}) {
        Random random(3);
        const HostPackedMatrix host = random_packed(random, N, K, grid, K, DType::float32);
        Array x = random.normals(M * K);
        // Rows of very different sizes, and of none.
        for (int64_t k = 0; k < K; ++k) x[k] *= 0x1p20, x[2 * K + k] = 0, x[4 * K + k] *= 0x1p-20;
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << " " << static_cast<int>(grid));
            Bench bench(*device.backend);
            const PackedMatrix weight = place(bench, host);
            const Tensor input = bench.input("x", x, DType::float32, {M, K});
            const Tensor all = bench.output("y", DType::float32, {M, N}),
                         one = bench.output("one", DType::float32, {1, N});
            device.backend->packed_matmul_forward({.y = all, .x = input, .weight = weight});
            const Array together = bench.read(all);
            for (int64_t m = 0; m < M; ++m) {
                device.backend->packed_matmul_forward({.y = one, .x = input.rows(m, 1), .weight = weight});
                const Array alone = bench.read(one);
                CHECK(inequality(alone, Array(together.begin() + m * N, together.begin() + (m + 1) * N)) ==
                      "");
                for (int64_t n = 0; n < N && m == 2; ++n) CHECK(alone[n] == 0);
            }
        }
    }
}

TEST_CASE("packed_matmul_forward shows NaN and infinity", "[packed_matmul_forward][device]") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const int64_t N = 5, K = 40;
    for (Grid grid : {Grid::binary, Grid::integer8, Grid::none})
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << " " << static_cast<int>(grid));
            Random random(5);
            const HostPackedMatrix host = random_packed(random, N, K, grid, K, DType::float32);
            for (double special : {nan, HUGE_VAL}) {
                Array x(2 * K, 0.5);
                x[K + 9] = special;
                Bench bench(*device.backend);
                const PackedMatrix weight = place(bench, host);
                const Tensor y = bench.output("y", DType::float32, {2, N});
                device.backend->packed_matmul_forward(
                    {.y = y, .x = bench.input("x", x, DType::float32, {2, K}), .weight = weight});
                const Array actual = bench.read(y);
                for (int64_t n = 0; n < N; ++n) {
                    CHECK(std::isfinite(actual[n]));
                    CHECK_FALSE(std::isfinite(actual[N + n]));
                }
            }
        }
}

TEST_CASE("packed_embedding_forward looks up rows exactly", "[packed_embedding_forward][device]") {
    for (const Sizes& s : sizes(7)) {
        Random random(s.K);
        const HostPackedMatrix host = random_packed(random, s.N, s.K, s.grid, s.group, s.dtype);
        const Array tokens = random.tokens(s.M, s.N);
        Array expected;
        for (double token : tokens)
            for (int64_t k = 0; k < s.K; ++k)
                expected.push_back(host.weights[static_cast<int64_t>(token) * s.K + k]);
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << " " << text(s));
            Bench bench(*device.backend);
            const PackedMatrix weight = place(bench, host);
            const Tensor y = bench.output("y", DType::float32, {s.M, s.K});
            device.backend->packed_embedding_forward(
                {.y = y, .tokens = bench.input("tokens", tokens, DType::int32, {s.M}), .weight = weight});
            CHECK(inequality(bench.read(y), reference::rounded(DType::float32, expected)) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("cached_attention_forward equals attention to the whole sequence",
          "[cached_attention_forward][device]") {
    Random random(11);
    std::vector<reference::Shape> shapes = {{1, 1, 1, 1, 2},    {1, 9, 2, 1, 16},   {1, 70, 4, 2, 32},
                                            {1, 300, 2, 2, 64}, {1, 40, 3, 3, 150}, {1, 33, 6, 2, 96}};
    shapes.push_back({1, random.integer(2, 140), 4, random.pick({1, 2, 4}), 2 * random.integer(1, 40)});
    shapes =
        affordable(shapes, 4000, [](const reference::Shape& s) { return s.rows() * s.heads * s.head_dim; });
    for (const reference::Shape& s : shapes) {
        const int64_t T = s.sequence, columns = s.qkv_columns(), capacity = T + random.integer(0, 5);
        const Array qkv = random.normals(T * columns);
        const Array expected = expected_attention(qkv, s);
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << " T " << T << " H " << s.heads << " G " << s.kv_heads << " D " << s.head_dim);
            Bench bench(*device.backend);
            const Tensor keys = bench.output("keys", DType::float32, {s.kv_heads, s.head_dim, capacity});
            const Tensor values = bench.output("values", DType::float32, {s.kv_heads, capacity, s.head_dim});
            const Tensor input = bench.input("qkv", qkv, DType::float32, {T, columns});
            const Tensor y = bench.output("y", DType::float32, {T, s.heads * s.head_dim});
            // In pieces of any length, as prompts and single tokens come.
            for (int64_t first = 0; first < T;) {
                const int64_t count = std::min(T - first, first % 2 == 0 ? random.integer(1, 40) : 1);
                device.backend->cached_attention_forward(
                    {.y = y.rows(first, count),
                     .keys = keys,
                     .values = values,
                     .qkv = input.rows(first, count),
                     .position = first,
                     .shape = {1, count, s.heads, s.kv_heads, s.head_dim}});
                first += count;
            }
            reference::Result bound(static_cast<int64_t>(expected.size()));
            bound.value = expected;
            // Weights sum to one; values are at most 5, scores some units.
            for (double& magnitude : bound.magnitude) magnitude = 40;
            CHECK(difference(bench.read(y), bound, DType::float32, float32_sum(T + s.head_dim)) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("operations of generation check their arguments",
          "[packed_matmul_forward][packed_embedding_forward][cached_attention_forward][contract][device]") {
    using Tensors = std::vector<Tensor>;
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        Bench bench(*device.backend);
        Backend& backend = *device.backend;
        Random random(13);
        const PackedMatrix weight =
            place(bench, random_packed(random, 6, 32, Grid::integer4, 16, DType::float32));
        const Tensor x = bench.input("x", random.normals(3 * 32), DType::float32, {3, 32});
        const Tensor y = bench.output("y", DType::float32, {3, 6}),
                     rows = bench.output("rows", DType::float32, {3, 32});
        const Tensor tokens = bench.input("tokens", {0, 1, 2}, DType::int32, {3});
        CHECK(contract_violations("packed_matmul_forward", {y, x}, {}, {}, [&](const Tensors& t) {
                  backend.packed_matmul_forward({.y = t[0], .x = t[1], .weight = weight});
              }) == "");
        CHECK(contract_violations("packed_embedding_forward", {rows, tokens}, {}, {}, [&](const Tensors& t) {
                  backend.packed_embedding_forward({.y = t[0], .tokens = t[1], .weight = weight});
              }) == "");
        for (int fault = 0; fault < 4; ++fault) {
            PackedMatrix wrong = weight;
            if (fault == 0) wrong.message.row_bytes += 16;
            if (fault == 1) wrong.group = 12;
            if (fault == 2) wrong.message.scales = nullptr;
            if (fault == 3) wrong.message.numbers = nullptr;
            INFO("fault " << fault);
            CHECK(contract_violation("packed_matmul_forward", [&] {
                      backend.packed_matmul_forward({.y = y, .x = x, .weight = wrong});
                  }) == "");
        }
        const AttentionShape shape{1, 3, 4, 2, 8};
        const Tensor qkv = bench.input("qkv", random.normals(3 * 64), DType::float32, {3, 64});
        const Tensor out = bench.output("out", DType::float32, {3, 32});
        const Tensor keys = bench.output("keys", DType::float32, {2, 8, 5}),
                     values = bench.output("values", DType::float32, {2, 5, 8});
        const auto attend = [&](const Tensors& t, int64_t position) {
            backend.cached_attention_forward(
                {.y = t[0], .keys = t[1], .values = t[2], .qkv = t[3], .position = position, .shape = shape});
        };
        CHECK(contract_violations("cached_attention_forward", {out, keys, values, qkv}, {}, {},
                                  [&](const Tensors& t) { attend(t, 0); }) == "");
        for (int64_t position : {-1, 3})
            CHECK(contract_violation("cached_attention_forward", [&] {
                      attend({out, keys, values, qkv}, position);
                  }) == "");
    }
}

TEST_CASE("reading has a speed", "[read_bandwidth][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        const double speed = device.backend->read_bandwidth(1 << 17);
        INFO(device.name << " " << speed);
        CHECK(std::isfinite(speed));
        CHECK(speed > 0);
    }
}
