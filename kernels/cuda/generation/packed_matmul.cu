// Matmuls of few rows with packed weights:
//     y[m,n] = sum over groups g of s[n,g] (step * sum_k x[m,k] code[n,k] + lowest * sum_k x[m,k])
// and of plain weights the same with s = step = 1, lowest = 0.
//
// Floor: the numbers of the weights read once. A warp has a few outputs; each of its lanes reads 16 bytes of each of
// their rows at a time and multiplies them with its part of x, which lies in shared memory: number i of lane l at
// i * 33 + l, so that neither filling it (neighbouring i) nor reading it (neighbouring l) meets a bank twice. More rows of
// x share the unpacking.
#include "kernels/codes.h"
#include "kernels/cuda/generation/generation.h"
#include "kernels/cuda/generation/packed_words.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int warps = 8;
constexpr int unit = 8;    // neighbouring columns that lie in one group (PackedMatrix::group)
constexpr int pitch = 33;  // of x in shared memory

template <int bits>
constexpr int lane_columns = 128 / bits;  // in 16 bytes

struct Factors {
    const float* scales;  // (N, groups), or null: all one
    int64_t groups;
    uint32_t group;  // 32 bits divide fast
    float step, lowest;
};

// x of `columns` columns from `first` on, zero behind the last: number i of lane l at [m][i * pitch + l].
template <int bits, int M>
CU_DEVICE void fill_x(float* shared, const float* x, int64_t rows, int64_t columns, int64_t m,
                      int64_t first) {
    constexpr int width = lane_columns<bits>;
    for (int c = static_cast<int>(threadIdx.x); c < 32 * width; c += warps * 32) CU_UNROLL
    for (int i = 0; i < M; ++i) {
        const bool there = first + c < columns && m + i < rows;
        const float value = there ? load(x + (m + i) * columns + first + c) : 0.0f;
        store_shared(shared + i * width * pitch + c % width * pitch + c / width, value);
    }
}

// Adds the products of `count` numbers of one word of each of R rows, from number `first` on, which is the lane's number
// `column` of this pass.
template <int bits, int count, int R, int M>
CU_DEVICE void add_products(float (&sums)[R][M], float (&x_sums)[M], const uint32_t (&words)[R], int first,
                            const float* shared, int column) {
    CU_UNROLL
    for (int i = 0; i < count; ++i) {
        float number[R];
        CU_UNROLL
        for (int r = 0; r < R; ++r) number[r] = number_of_word<bits>(words[r], first + i);
        CU_UNROLL
        for (int m = 0; m < M; ++m) {
            const float x =
                load_shared(shared + m * lane_columns<bits> * pitch + (column + i) * pitch + lane_index());
            x_sums[m] += x;
            CU_UNROLL
            for (int r = 0; r < R; ++r) sums[r][m] += x * number[r];
        }
    }
}

// The sums of columns of one group: totals += s (step sums + lowest x_sums).
template <int R, int M>
CU_DEVICE void take_up(float (&totals)[R][M], float (&sums)[R][M], float (&x_sums)[M], const Factors& factors,
                       const int64_t (&outputs)[R], int64_t group) {
    CU_UNROLL
    for (int r = 0; r < R; ++r) {
        const float scale =
            factors.scales != nullptr ? load(factors.scales + outputs[r] * factors.groups + group) : 1.0f;
        CU_UNROLL
        for (int m = 0; m < M; ++m) {
            totals[r][m] += scale * (factors.step * sums[r][m] + factors.lowest * x_sums[m]);
            sums[r][m] = 0;
        }
    }
    CU_UNROLL
    for (int m = 0; m < M; ++m) x_sums[m] = 0;
}

// Block (i, j): outputs warps * R * i ..., rows M * j ... of x. Grouped: several scales per row.
template <int bits, int R, int M, bool grouped>
__global__ void __launch_bounds__(warps * 32)
    multiply_packed(float* y, const float* x, const uint8_t* weights, int64_t row_bytes, Factors factors,
                    int64_t rows, int64_t columns, int64_t outputs) {
    constexpr int width = lane_columns<bits>, in_word = 32 / bits;
    constexpr int part = grouped && in_word > unit ? unit : in_word;
    CU_SHARED(shared, float[M * width * pitch]);
    const int64_t m = int64_t{blockIdx.y} * M;
    int64_t own[R];
    CU_UNROLL
    for (int r = 0; r < R; ++r) {
        const int64_t n = (int64_t{blockIdx.x} * warps + warp_index()) * R + r;
        own[r] = n < outputs ? n : outputs - 1;
    }
    float totals[R][M] = {}, sums[R][M] = {}, x_sums[M] = {};
    for (int64_t byte = lane_index() * 16, first = 0; first < columns; byte += 512, first += 32 * width) {
        // The loads go out before the wait for x.
        Vector<uint32_t, 4> read[R] = {};
        CU_UNROLL
        for (int r = 0; r < R; ++r)
            if (byte < row_bytes)
                read[r] =
                    load_vector<4>(reinterpret_cast<const uint32_t*>(weights + own[r] * row_bytes + byte));
        fill_x<bits, M>(shared, x, rows, columns, m, first);
        block_sync();
        const int64_t column = first + lane_index() * width;
        CU_NO_UNROLL
        for (int word = 0; word < 4; ++word) {
            uint32_t words[R];
            CU_UNROLL
            for (int r = 0; r < R; ++r) {
                words[r] = read[r][0];
                read[r][0] = read[r][1], read[r][1] = read[r][2], read[r][2] = read[r][3];
            }
            CU_UNROLL
            for (int first_of_part = 0; first_of_part < in_word; first_of_part += part) {
                const int in_lane = word * in_word + first_of_part;
                add_products<bits, part>(sums, x_sums, words, first_of_part, shared, in_lane);
                if (grouped && column + in_lane < columns)
                    take_up(totals, sums, x_sums, factors, own,
                            static_cast<uint32_t>(column + in_lane) / factors.group);
            }
        }
        block_sync();
    }
    if constexpr (!grouped) take_up(totals, sums, x_sums, factors, own, 0);
    CU_UNROLL
    for (int r = 0; r < R; ++r) CU_UNROLL
    for (int i = 0; i < M; ++i) {
        const float total = warp_sum(totals[r][i]);
        const int64_t n = (int64_t{blockIdx.x} * warps + warp_index()) * R + r;
        if (lane_index() == 0 && n < outputs && m + i < rows) store(y + (m + i) * outputs + n, total);
    }
}

template <int bits, int R, int M>
void launch(Device& device, const PackedMatmulForward& a) {
    const PackedMatrix& weight = a.weight;
    const bool coded = weight.grid != Grid::none;
    const int64_t rows = a.x.shape[0], groups = coded ? weight.columns / weight.group : 1;
    const Factors factors{coded ? weight.message.scales : nullptr, groups,
                          static_cast<uint32_t>(coded ? weight.group : weight.columns),
                          coded ? level_step(weight.grid) : 1.0f, lowest_level(weight.grid)};
    const dim3 blocks(blocks_for(weight.rows, warps * R), blocks_for(rows, M));
    const auto* const numbers = static_cast<const uint8_t*>(weight.message.numbers);
    const auto go = [&]<bool grouped>() {
        CU_LAUNCH((multiply_packed<bits, R, M, grouped>), blocks, warps * 32, 0, device.stream(),
                  a.y.as<float>(), a.x.as<float>(), numbers, weight.message.row_bytes, factors, rows,
                  weight.columns, weight.rows);
    };
    if constexpr (bits < 16) {
        if (groups > 1) return go.template operator()<true>();
    }
    go.template operator()<false>();
}

}  // namespace

void packed_matmul_forward(Device& device, const PackedMatmulForward& a) {
    const PackedMatrix& weight = a.weight;
    const int bits =
        weight.grid != Grid::none ? code_bits(weight.grid) : static_cast<int>(8 * size_of(weight.dtype));
    with_bits(bits, [&]<int width>() {
        // A lane's part of x must fit in shared memory.
        constexpr int several = width == 1 ? 2 : 4;
        if (a.x.shape[0] == 1)
            launch<width, 4, 1>(device, a);
        else
            launch<width, 2, several>(device, a);
    });
}

}  // namespace train_qat::CU_BACKEND
