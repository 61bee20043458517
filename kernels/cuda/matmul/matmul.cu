// Matmuls of linear layers: dense ones through DenseMatmul, those with packed codes through our fused
// kernels.
#include <algorithm>

#include "kernels/codes.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"

namespace train_qat::CU_BACKEND {

namespace {

Tensor dense_weight(const ComputeWeight& weight) {
    return Tensor(weight.storage, weight.dtype, {weight.rows, weight.columns});
}

// Where quantize() has put codes and, with several groups a row, their scales.
FakeQuantWeight packed_weight(const ComputeWeight& weight) {
    FakeQuantWeight packed;
    packed.rows = weight.rows;
    packed.columns = weight.columns;
    packed.source = WeightSource::codes;
    packed.data = weight.storage;
    packed.grid = weight.codes;
    packed.group = weight.code_group;
    if (weight.code_group < weight.columns)
        packed.scales =
            reinterpret_cast<const float*>(static_cast<const char*>(weight.storage) +
                                           code_scales_offset(weight.rows, weight.columns, weight.codes));
    return packed;
}

}  // namespace

// Room for either form: numbers of the compute type, or the widest codes with a scale per 32 columns.
int64_t CudaBackend::compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type, bool) const {
    const int64_t plain = rows * columns * size_of(compute_type);
    if (compute_type != DType::bfloat16) return plain;
    constexpr int64_t smallest_group = 32;
    const int64_t scales = rows * (columns / smallest_group) * static_cast<int64_t>(sizeof(float));
    return std::max(plain, code_scales_offset(rows, columns, Grid::integer8) + scales);
}

void CudaBackend::matmul_forward(const Tensor& z, const Tensor& x, const ComputeWeight& weight) {
    const int64_t rows = x.shape[0];
    check_tensor("matmul_forward", "x", x, weight.dtype, {rows, weight.columns});
    check_tensor("matmul_forward", "z", z, z.dtype == DType::float32 ? DType::float32 : weight.dtype,
                 {rows, weight.rows});
    if (weight.codes == Grid::none)
        dense_->multiply_nt(z, x, dense_weight(weight));
    else
        fakequant_matmul_forward(stream(), z, x, packed_weight(weight), nullptr);
}

void CudaBackend::matmul_input_gradient(const Tensor& dx, const Tensor& dz, const ComputeWeight& weight) {
    const int64_t rows = dz.shape[0];
    check_tensor("matmul_input_gradient", "dz", dz, weight.dtype, {rows, weight.rows});
    check_tensor("matmul_input_gradient", "dx", dx, weight.dtype, {rows, weight.columns});
    if (weight.codes == Grid::none)
        dense_->multiply_nn(dx, dz, dense_weight(weight));
    else
        fakequant_matmul_input_gradient(stream(), dx, dz, packed_weight(weight));
}

void CudaBackend::matmul_weight_gradient(const Tensor& dq, const Tensor& dz, const Tensor& x,
                                         bool accumulate) {
    const int64_t inner = dz.shape[0], rows = dz.shape[1], columns = x.shape[1];
    if (dz.dtype == DType::int32)
        throw std::logic_error("matmul_weight_gradient: dz must have a compute type");
    check_tensor("matmul_weight_gradient", "dz", dz, dz.dtype, {inner, rows});
    check_tensor("matmul_weight_gradient", "x", x, dz.dtype, {inner, columns});
    check_tensor("matmul_weight_gradient", "dq", dq, DType::float32, {rows, columns});
    dense_->multiply_tn(dq, dz, x, accumulate);
}

}  // namespace train_qat::CU_BACKEND
