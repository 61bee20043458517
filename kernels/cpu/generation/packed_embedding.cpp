// Rows of a packed matrix as numbers.
#include "kernels/codes.h"
#include "kernels/cpu/cpu_backend.h"

namespace train_qat {

namespace {

template <Grid grid>
void unpack_row(const PackedMatrix& weight, int64_t row, float* __restrict out) {
    constexpr int bits = code_bits(grid), in_byte = 8 / bits;
    const auto* const codes =
        static_cast<const uint8_t*>(weight.message.numbers) + row * weight.message.row_bytes;
    const float* const scales = weight.message.scales + row * weight.message.scales_per_row;
    for (int64_t k = 0; k < weight.columns; ++k)
        out[k] = scales[k / weight.group] *
                 level_of_code<grid>(codes[k / in_byte] >> (k % in_byte * bits) & code_mask(grid));
}

template <typename T>
void copy_row(const PackedMatrix& weight, int64_t row, float* __restrict out) {
    const auto* const numbers = reinterpret_cast<const T*>(static_cast<const char*>(weight.message.numbers) +
                                                           row * weight.message.row_bytes);
    for (int64_t k = 0; k < weight.columns; ++k) out[k] = static_cast<float>(numbers[k]);
}

}  // namespace

void CpuBackend::compute(const PackedEmbeddingForward& args) {
    const PackedMatrix& weight = args.weight;
    for (int64_t m = 0; m < args.tokens.shape[0]; ++m) {
        const int64_t token = args.tokens.as<int32_t>()[m];
        float* const out = args.y.as<float>() + m * weight.columns;
        with_grid(weight.grid, [&]<Grid grid>() {
            if constexpr (grid == Grid::none)
                with_compute_type(args.name, weight.dtype,
                                  [&]<typename T>() { copy_row<T>(weight, token, out); });
            else
                unpack_row<grid>(weight, token, out);
        });
    }
}

}  // namespace train_qat
