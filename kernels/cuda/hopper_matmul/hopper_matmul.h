// Dense matmuls of bfloat16 operands by Hopper's own instructions, for cards of compute capability 9.0. No card has timed
// them in training yet: they are chosen by -gemm hopper alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/matmul/dense_matmul.h"

namespace train_qat::CU_BACKEND {

// "" or why a product is not for these kernels. Tensor maps need rows of whole 16 bytes that begin at multiples of 16: 8
// numbers of bfloat16, 4 of float32.
std::string hopper_product_refusal(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate);

// How a product (rows, columns) with sums of `inner` terms is divided among blocks. It follows from these numbers and the
// number of multiprocessors alone, for the order of a sum depends on it.
struct ProductPlan {
    int tile_columns;  // 256 or 128; tiles have 128 rows
    int splits;        // of the inner dimension: 1, or for float32 sums as many as it has slices of 64
};
// splittable: float32 sums, which may meet in memory.
ProductPlan plan_product(int64_t rows, int64_t columns, int64_t inner, bool splittable, int multiprocessors);

// std::logic_error for a product that hopper_product_refusal refuses. Splits use the device's scratch memory.
void hopper_matmul(Device& device, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                   bool accumulate, const ProductPlan& plan);

// By these kernels, and by `others` where they refuse, which is reported once for each reason.
std::unique_ptr<DenseMatmul> make_hopper_matmul(Device& device, std::unique_ptr<DenseMatmul> others);

}  // namespace train_qat::CU_BACKEND
