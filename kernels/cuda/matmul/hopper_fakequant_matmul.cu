// The fused matmuls on Hopper: which kernel of hopper_code_matmul.cuh a product takes, and its tensor maps.
//
// Floor: 2 M N K FLOP on tensor cores, as dense. Of the weight, bits / 8 bytes a number cross memory instead of two.
#include "kernels/cuda/matmul/hopper_fakequant_matmul.h"

#include <bit>
#include <stdexcept>

#include "kernels/cuda/matmul/hopper_code_matmul.cuh"
#include "kernels/cuda/platform/tensor_map.cuh"
#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

std::string hopper_refusal(int64_t rows, int64_t columns, int64_t group) {
    if (rows % 8 != 0 || columns % 8 != 0)
        return "tensor maps need outputs and inputs that are multiples of 8";
    if (group != columns && (group < 32 || !std::has_single_bit(static_cast<uint64_t>(group))))
        return "groups must be powers of two from 32 on";
    return "";
}

// ---- launchers

namespace {

constexpr int narrow_tokens = 64, wide_tokens = 256;

template <typename Matmul>
void launch(Device& device, const Tensor& out, const Tensor& left, const ComputeWeight& weight) {
    constexpr int bits = Matmul::bits;
    const WeightLayout layout = layout_of(weight);
    const int64_t tokens = out.shape[0], features = out.shape[1], inner = left.shape[1];
    const TensorMap left_map =
        make_matrix_map("the activations", left.as<bfloat16>(), tokens, inner, Matmul::tokens);
    const TensorMap out_map = make_matrix_map("the product", out.as<bfloat16>(), tokens, features, 64);
    const TensorMap code_map = make_tensor_map(static_cast<const uint8_t*>(layout.numbers),
                                               {.name = "the codes",
                                                .extent = {layout.row_bytes, weight.rows, 1},
                                                .pitch = {layout.row_bytes, 0},
                                                .box = {CodeTile<bits>::row_bytes, CodeTile<bits>::extent, 1},
                                                .swizzled = false});
    const CodeSteps steps{static_cast<int>(blocks_for(tokens, Matmul::tokens)),
                          static_cast<int>(blocks_for(features, Matmul::features)),
                          static_cast<int>(blocks_for(inner, Matmul::slice))};
    const GroupScales scales{weight_scales(layout.group_scale, weight.columns, weight.code_group),
                             static_cast<int>(weight.rows), static_cast<int>(weight.columns)};
    const int64_t tiles = int64_t{steps.token_tiles} * steps.feature_tiles;
    constexpr int64_t most = 1 << 30;  // positions are int
    if (std::max({tokens, features, inner, tiles}) > most)
        throw std::logic_error("hopper_matmul: more than 2^30 rows, columns or tiles");
    const auto blocks =
        static_cast<unsigned>(std::min(tiles, static_cast<int64_t>(device.properties().multiprocessors)));
    CU_LAUNCH((code_matmul<Matmul>), dim3(blocks), dim3(hopper_matmul_threads), Matmul::shared_bytes,
              device.stream(), left_map, code_map, out_map, CodeLevels<bits>(weight.codes), scales, steps);
}

// Wide tiles, where they are enough for all multiprocessors.
bool wide(Device& device, const Tensor& out, TileSize size) {
    if (size != TileSize::automatic) return size == TileSize::large;
    const int64_t tiles = int64_t{blocks_for(out.shape[0], wide_tokens)} * blocks_for(out.shape[1], 128);
    return tiles >= device.properties().multiprocessors;
}

template <MatmulForm form>
void multiply(Device& device, const Tensor& out, const Tensor& left, const ComputeWeight& weight,
              TileSize size) {
    const std::string refusal = hopper_refusal(weight.rows, weight.columns, weight.code_group);
    if (!refusal.empty()) throw std::logic_error("hopper_matmul: " + refusal);
    with_code_bits(weight.codes, [&]<int bits>() {
        const auto with_scales = [&]<bool grouped>() {
            if (wide(device, out, size))
                launch<CodeMatmul<bits, form, grouped, wide_tokens>>(device, out, left, weight);
            else
                launch<CodeMatmul<bits, form, grouped, narrow_tokens>>(device, out, left, weight);
        };
        if (weight.code_group < weight.columns)
            with_scales.template operator()<true>();
        else
            with_scales.template operator()<false>();
    });
}

}  // namespace

void hopper_matmul_forward(Device& device, const Tensor& z, const Tensor& x, const ComputeWeight& weight,
                           TileSize size) {
    multiply<MatmulForm::nt>(device, z, x, weight, size);
}

void hopper_matmul_input_gradient(Device& device, const Tensor& dx, const Tensor& dz,
                                  const ComputeWeight& weight, TileSize size) {
    multiply<MatmulForm::nn>(device, dx, dz, weight, size);
}

}  // namespace train_qat::CU_BACKEND
