// What the files of the fused matmuls share: one call, and its way to the kernel for a source of weights.
#pragma once

#include <bit>

#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "kernels/cuda/matmul/tile_matmul.cuh"
#include "kernels/cuda/matmul/weight_sources.cuh"

namespace train_qat::CU_BACKEND {

// out = left q, or left qᵀ.
struct FakeQuantProduct {
    CuStream stream;
    MatmulForm form;  // nt or nn
    Product out;
    Tensor left;
    FakeQuantWeight weight;
    TileSize size;
};

// One file each, by weight.source.
void multiply_codes(const FakeQuantProduct& product);
void multiply_float32_master(const FakeQuantProduct& product);
void multiply_bfloat16_master(const FakeQuantProduct& product);

inline WeightScales scales_of(const FakeQuantWeight& weight) {
    constexpr int whole_row = 31;
    const bool grouped = weight.group < weight.columns;
    return {weight.scales, static_cast<int>(weight.columns / weight.group),
            grouped ? std::countr_zero(static_cast<uint64_t>(weight.group)) : whole_row};
}

// weight_aligned: whether `aligned` may read the weight. `any` reads everything.
template <MatmulForm form, typename AlignedWeight, typename AnyWeight>
void launch_fakequant_form(const FakeQuantProduct& p, bool weight_aligned, const AlignedWeight& aligned,
                           const AnyWeight& any) {
    const int inner = inner_extent(form, p.left);
    if (!weight_aligned || !rows_are_aligned(p.left)) {
        launch_tile_matmul<UnalignedTile, form>(p.stream, p.out, UnalignedBfloat16(p.left), any, inner);
        return;
    }
    with_block_tile(p.out, p.size, [&]<typename Block>() {
        launch_tile_matmul<Block, form>(p.stream, p.out, AlignedBfloat16(p.left), aligned, inner);
    });
}
template <typename AlignedWeight, typename AnyWeight>
void launch_fakequant(const FakeQuantProduct& p, bool weight_aligned, const AlignedWeight& aligned,
                      const AnyWeight& any) {
    if (p.form == MatmulForm::nt)
        launch_fakequant_form<MatmulForm::nt>(p, weight_aligned, aligned, any);
    else
        launch_fakequant_form<MatmulForm::nn>(p, weight_aligned, aligned, any);
}

// For the two files of master weights.
template <typename Master>
void launch_master(const FakeQuantProduct& p) {
    const auto* weights = static_cast<const Master*>(p.weight.data);
    const int rows = static_cast<int>(p.weight.rows), columns = static_cast<int>(p.weight.columns);
    const WeightScales scales = scales_of(p.weight);
    const bool grouped = p.weight.group < p.weight.columns;
    constexpr int width = 16 / sizeof(Master);
    with_grid(p.weight.grid, [&]<Grid grid>() {
        if constexpr (grid != Grid::none)
            launch_fakequant(p, vector_aligned<width>(weights, columns) && columns % 8 == 0,
                             MasterWeights<Master, grid, true>{weights, rows, columns, scales, grouped},
                             MasterWeights<Master, grid, false>{weights, rows, columns, scales, grouped});
    });
}

}  // namespace train_qat::CU_BACKEND
