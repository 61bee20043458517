// Fused matmuls: tile_matmul.cuh with packed codes (packed_codes.cuh) as the right operand. A kernel knows the number of
// bits; levels are lowest + code * step, with both as arguments.
//
// Floor: 2 M N K FLOP on tensor cores, as dense. Of the weight, bits / 8 bytes a number cross memory instead of two.
#include "kernels/cuda/matmul/fakequant_matmul.h"

#include <bit>

#include "kernels/cuda/matmul/packed_codes.cuh"
#include "kernels/cuda/matmul/tile_matmul.cuh"
#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

namespace {

template <int bits>
PackedCodes<bits> packed_codes(const ComputeWeight& weight) {
    constexpr float two_to_15 = 32768.0f;
    const WeightLayout layout = layout_of(weight);
    const float step = level_step(weight.codes);
    return {static_cast<const unsigned char*>(layout.numbers),
            static_cast<int>(weight.rows),
            static_cast<int>(weight.columns),
            layout.row_bytes,
            weight_scales(layout.group_scale, weight.columns, weight.code_group),
            step,
            lowest_level(weight.codes) - two_to_15 * step};
}

// out = left q, or left qᵀ.
template <MatmulForm form>
void multiply(CuStream stream, const Tensor& out, const Tensor& left, const ComputeWeight& weight,
              TileSize size) {
    const Product product = product_of(out, false);
    with_code_bits(weight.codes, [&]<int bits>() {
        const PackedCodes<bits> codes = packed_codes<bits>(weight);
        launch_product<form>(stream, product, left, true, codes, codes, size);
    });
}

}  // namespace

void fakequant_matmul_forward(CuStream stream, const Tensor& z, const Tensor& x, const ComputeWeight& weight,
                              TileSize size) {
    multiply<MatmulForm::nt>(stream, z, x, weight, size);
}

void fakequant_matmul_input_gradient(CuStream stream, const Tensor& dx, const Tensor& dz,
                                     const ComputeWeight& weight, TileSize size) {
    multiply<MatmulForm::nn>(stream, dx, dz, weight, size);
}

}  // namespace train_qat::CU_BACKEND
