// Products of bfloat16 matrices on tensor cores: tile_matmul.cuh with both operands as they are in memory.
#include "kernels/cuda/matmul/matmul_forms.h"
#include "kernels/cuda/matmul/tile_matmul.cuh"

namespace train_qat::CU_BACKEND {

namespace {

template <MatmulForm form>
void multiply(CuStream stream, const Product& out, const Tensor& a, const Tensor& b, TileSize size) {
    const int inner = inner_extent(form, a);
    if (!rows_are_aligned(a) || !rows_are_aligned(b)) {
        launch_tile_matmul<UnalignedTile, form>(stream, out, UnalignedBfloat16(a), UnalignedBfloat16(b),
                                                inner);
        return;
    }
    with_block_tile(out, size, [&]<typename Block>() {
        launch_tile_matmul<Block, form>(stream, out, AlignedBfloat16(a), AlignedBfloat16(b), inner);
    });
}

}  // namespace

void matmul_bfloat16(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                     bool accumulate, const float* column_scale, TileSize size) {
    const Product product = product_of(out, accumulate, column_scale);
    if (form == MatmulForm::nt)
        multiply<MatmulForm::nt>(stream, product, a, b, size);
    else if (form == MatmulForm::nn)
        multiply<MatmulForm::nn>(stream, product, a, b, size);
    else
        multiply<MatmulForm::tn>(stream, product, a, b, size);
}

}  // namespace train_qat::CU_BACKEND
