// Random packed weights, with the numbers that they stand for.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/codes.h"
#include "kernels/generation_operations.h"
#include "test/support/device.h"

namespace train_qat::test {

struct HostPackedMatrix {
    PackedMatrix matrix;                 // its message points into what follows
    std::vector<unsigned char> numbers;  // (N, row_bytes)
    Array scales;                        // (N, K / group) or empty
    Array weights;                       // (N, K)

    double lowest() const { return std::abs(static_cast<double>(lowest_level(matrix.grid))); }
};

// Any code of the grid with equal chances, or normal numbers without a grid.
inline HostPackedMatrix random_packed(Random& random, int64_t rows, int64_t columns, Grid grid, int64_t group,
                                      DType dtype) {
    HostPackedMatrix host;
    PackedMatrix& matrix = host.matrix;
    matrix = {rows, columns, grid, group, dtype, {}};
    matrix.message.row_bytes = packed_row_bytes(columns, grid, dtype);
    host.numbers.assign(static_cast<size_t>(rows * matrix.message.row_bytes), 0);
    if (grid == Grid::none) {
        host.weights = random.normals(rows * columns, dtype);
        for (int64_t i = 0; i < rows * columns; ++i) {
            unsigned char* const row = &host.numbers[(i / columns) * matrix.message.row_bytes];
            const auto value = static_cast<float>(host.weights[i]);
            if (dtype == DType::bfloat16) {
                const bfloat16 narrow(value);
                std::memcpy(row + i % columns * 2, &narrow, 2);
            } else {
                std::memcpy(row + i % columns * 4, &value, 4);
            }
        }
        return host;
    }
    const Array& levels = reference::table_of(grid).levels;
    const int bits = code_bits(grid);
    matrix.message.scales_per_row = columns / group;
    host.scales = random.scales(rows * columns / group, 0.125);
    host.weights.resize(static_cast<size_t>(rows * columns));
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t k = 0; k < columns; ++k) {
            const int64_t code = random.integer(0, static_cast<int64_t>(levels.size()) - 1);
            host.numbers[n * matrix.message.row_bytes + k * bits / 8] |=
                static_cast<unsigned char>(code << (k * bits % 8));
            host.weights[n * columns + k] = levels[code] * host.scales[(n * columns + k) / group];
        }
    return host;
}

// The matrix in a device's memory.
inline PackedMatrix place(Bench& bench, const HostPackedMatrix& host) {
    PackedMatrix matrix = host.matrix;
    void* const numbers = bench.workspace(static_cast<int64_t>(host.numbers.size()));
    bench.backend().copy_to_device(numbers, host.numbers.data(), static_cast<int64_t>(host.numbers.size()));
    matrix.message.numbers = numbers;
    if (!host.scales.empty())
        matrix.message.scales =
            bench.input("scales", host.scales, DType::float32, {static_cast<int64_t>(host.scales.size())})
                .as<float>();
    return matrix;
}

}  // namespace train_qat::test
