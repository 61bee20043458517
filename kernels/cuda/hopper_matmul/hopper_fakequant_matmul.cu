// The fused matmuls on Hopper: which kernel of hopper_code_matmul.cuh a product takes, and its tensor maps.
//
// Floor: 2 M N K FLOP on tensor cores, as dense. Of the weight, bits / 8 bytes a number cross memory instead of two: with few
// tokens that is most of a product's bytes, and the latencies of a kernel are most of its time.
#include "kernels/cuda/hopper_matmul/hopper_fakequant_matmul.h"

#include <bit>
#include <stdexcept>

#include "kernels/cuda/hopper_matmul/hopper_code_launch.cuh"
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

template <typename Matmul>
void launch(Device& device, const Tensor& out, const Tensor& left, const ComputeWeight& weight, int splits) {
    constexpr int bits = Matmul::bits;
    const WeightLayout layout = layout_of(weight);
    const TensorMap code_map = make_tensor_map(static_cast<const uint8_t*>(layout.numbers),
                                               {.name = "the codes",
                                                .extent = {layout.row_bytes, weight.rows, 1},
                                                .pitch = {layout.row_bytes, 0},
                                                .box = {CodeTile<bits>::row_bytes, CodeTile<bits>::extent, 1},
                                                .swizzled = false});
    const GroupScales scales{weight_scales(layout.group_scale, weight.columns, weight.code_group),
                             static_cast<int>(weight.rows), static_cast<int>(weight.columns)};
    launch_code_matmul<Matmul>(device, out, left, code_map, CodeLevels<bits>(weight.codes), scales, splits);
}

template <MatmulForm form>
void multiply(Device& device, const Tensor& out, const Tensor& left, const ComputeWeight& weight,
              std::optional<CodePlan> given) {
    const std::string refusal = hopper_refusal(weight.rows, weight.columns, weight.code_group);
    if (!refusal.empty()) throw std::logic_error("hopper_matmul: " + refusal);
    const CodePlan plan =
        given ? *given
              : code_plan(out.shape[0], out.shape[1], left.shape[1], device.properties().multiprocessors);
    with_code_bits(weight.codes, [&]<int bits>() {
        const auto with_scales = [&]<bool grouped>() {
            if (plan.tokens == CodePlan::many)
                launch<CodeMatmul<RowCodes<bits, form>, grouped, CodePlan::many>>(device, out, left, weight,
                                                                                  1);
            else if (plan.tokens == CodePlan::medium)
                launch<CodeMatmul<RowCodes<bits, form>, grouped, CodePlan::medium>>(device, out, left, weight,
                                                                                    1);
            else
                launch<CodeMatmul<RowCodes<bits, form>, grouped, CodePlan::few>>(device, out, left, weight,
                                                                                 plan.splits);
        };
        if (weight.code_group < weight.columns)
            with_scales.template operator()<true>();
        else
            with_scales.template operator()<false>();
    });
}

}  // namespace

void hopper_matmul_forward(Device& device, const Tensor& z, const Tensor& x, const ComputeWeight& weight,
                           std::optional<CodePlan> plan) {
    multiply<MatmulForm::nt>(device, z, x, weight, plan);
}

void hopper_matmul_input_gradient(Device& device, const Tensor& dx, const Tensor& dz,
                                  const ComputeWeight& weight, std::optional<CodePlan> plan) {
    multiply<MatmulForm::nn>(device, dx, dz, weight, plan);
}

}  // namespace train_qat::CU_BACKEND
