// Products of bfloat16 matrices on tensor cores: tile_matmul.cuh with both operands as they are in memory. Formulas,
// floor and design are there.
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/tile_matmul.cuh"

namespace train_qat::CU_BACKEND {

void matmul_bfloat16(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                     bool accumulate, TileSize size) {
    const Product product = product_of(out, accumulate);
    const auto launch = [&]<MatmulForm known>() {
        launch_product<known>(stream, product, a, rows_are_aligned(b), AlignedBfloat16(b),
                              UnalignedBfloat16(b), size);
    };
    if (form == MatmulForm::nt)
        launch.template operator()<MatmulForm::nt>();
    else if (form == MatmulForm::nn)
        launch.template operator()<MatmulForm::nn>();
    else
        launch.template operator()<MatmulForm::tn>();
}

}  // namespace train_qat::CU_BACKEND
