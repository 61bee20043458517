// Products of codes on the CPU: by AVX512-VNNI and by plain C++, whose whole numbers must be the same.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/generation/code_products.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/packed_matrix.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

struct FixedPoint {
    FixedPointRows rows;
    std::vector<char> memory;
};

FixedPoint fixed_point(const Array& x, int64_t M, int64_t K, int64_t group, int64_t in_byte) {
    FixedPoint made;
    made.rows = fixed_point_rows(M, K, group, in_byte);
    made.memory.resize(static_cast<size_t>(fixed_point_bytes(made.rows)) + 64);
    const auto address = reinterpret_cast<uintptr_t>(made.memory.data());
    made.rows = placed_in(made.memory.data() + (64 - address % 64) % 64, made.rows);
    for (int64_t m = 0; m < M; ++m) {
        const std::vector<float> row(x.begin() + m * K, x.begin() + (m + 1) * K);
        make_fixed_point(made.rows, m, row.data());
    }
    return made;
}

}  // namespace

TEST_CASE("numbers in fixed point are within half a unit of their row's largest", "[code_products]") {
    Random random(21);
    for (int64_t in_byte : {1, 2, 4, 8}) {
        const int64_t K = random.integer(1, 700);
        Array x = random.normals(K);
        x[random.integer(0, K - 1)] = -9;  // the largest in magnitude
        const FixedPoint made = fixed_point(x, 1, K, K, in_byte);
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) {
            const int64_t block = k / (64 * in_byte), i = k % (64 * in_byte) / in_byte, j = k % in_byte;
            const int8_t* const pieces = made.rows.row(0) + (block * in_byte + j) * 3 * 64 + i;
            const double n = 65536.0 * pieces[0] + 256.0 * pieces[64] + pieces[128];
            sum += n;
            CHECK(std::abs(n * made.rows.scales[0] - x[k]) <= 9 * 0x1p-23);
        }
        CHECK(sum == made.rows.group_sums[0]);
    }
}

TEST_CASE("plain C++ multiplies codes as AVX512-VNNI does", "[code_products]") {
    Random random(22);
    for (Grid grid : reference::quantized_grids()) {
        const int bits = code_bits(grid);
        for (int64_t group : {0, 8, 24, 32, 64, 128, 512}) {
            const int64_t K = group == 0 ? random.integer(1, 2500) : group * random.integer(2, 7);
            const int64_t M = random.integer(1, 6), N = random.integer(1, 9);
            const HostPackedMatrix host =
                random_packed(random, N, K, grid, group == 0 ? K : group, DType::float32);
            PackedMatrix weight = host.matrix;
            std::vector<unsigned char> numbers = host.numbers;
            std::vector<float> scales(host.scales.begin(), host.scales.end());
            weight.message.numbers = numbers.data();
            weight.message.scales = scales.data();
            const Array x = random.normals(M * K);
            const FixedPoint made = fixed_point(x, M, K, weight.group, 8 / bits);
            std::vector<float> plain(M * N, NAN), fast = plain;
            portable_code_product(bits)({&weight, made.rows, plain.data()}, 0, N);
            INFO(reference::name_of(grid)
                 << " M " << M << " N " << N << " K " << K << " group " << weight.group);
            reference::Result expected(M * N);
            for (int64_t m = 0; m < M; ++m)
                for (int64_t n = 0; n < N; ++n)
                    for (int64_t k = 0; k < K; ++k) {
                        const double w = host.weights[n * K + k];
                        expected.value[m * N + n] += x[m * K + k] * w;
                        expected.magnitude[m * N + n] +=
                            5 * (std::abs(w) + host.scales[(n * K + k) / weight.group] * host.lowest());
                    }
            CHECK(difference(Array(plain.begin(), plain.end()), expected, DType::float32, float32_sum(K)) ==
                  "");
            const CodeProductFunction product = vnni_code_product(bits, K, weight.group);
            if (product == nullptr) continue;
            // In two parts, as threads take them.
            product({&weight, made.rows, fast.data()}, 0, N / 2);
            product({&weight, made.rows, fast.data()}, N / 2, N);
            CHECK(difference(Array(fast.begin(), fast.end()), expected, DType::float32, float32_sum(K)) ==
                  "");
            if (weight.group == K)
                CHECK(inequality(Array(fast.begin(), fast.end()), Array(plain.begin(), plain.end())) == "");
        }
    }
}

TEST_CASE("sums of very long rows stay whole", "[code_products]") {
    const int64_t K = 150000;
    for (Grid grid : {Grid::integer8, Grid::integer4}) {
        const int bits = code_bits(grid);
        PackedMatrix weight{1, K, grid, K, DType::float32, {}};
        weight.message.row_bytes = packed_row_bytes(K, grid, DType::float32);
        std::vector<unsigned char> numbers(weight.message.row_bytes, 0xff);  // the highest level
        float scale = 1;
        weight.message.numbers = numbers.data();
        weight.message.scales = &scale;
        weight.message.scales_per_row = 1;
        const FixedPoint made = fixed_point(Array(K, 1.0), 1, K, K, 8 / bits);
        const double expected = static_cast<double>(K) * reference::table_of(grid).levels.back();
        for (CodeProductFunction product : {portable_code_product(bits), vnni_code_product(bits, K, K)}) {
            if (product == nullptr) continue;
            float y = NAN;
            product({&weight, made.rows, &y}, 0, 1);
            CHECK(std::abs(y - expected) <= expected * 0x1p-22);
        }
    }
}
