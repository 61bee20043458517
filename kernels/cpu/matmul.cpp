// Matmuls of linear layers, through oneDNN: the forward and input-gradient forms read a weight that was
// packed once per optimizer step, the weight-gradient form adds into float32.
#include <chrono>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul_cache.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/tile.h"

namespace train_qat {

namespace {

int64_t packed_bytes(MatmulCache& matmuls, DType dtype, int64_t inner, int64_t columns) {
    return round_up(static_cast<int64_t>(matmuls.packed_layout(dtype, inner, columns).get_size()), 64);
}

}  // namespace

PackedWeight packed_weight(MatmulCache& matmuls, const ComputeWeight& weight) {
    char* memory = static_cast<char*>(weight.storage);
    PackedWeight packed;
    packed.rows = weight.embedding ? memory : nullptr;
    if (weight.embedding) memory += round_up(weight.rows * weight.columns * size_of(weight.dtype), 64);
    packed.forward = memory;
    packed.backward = memory + packed_bytes(matmuls, weight.dtype, weight.columns, weight.rows);
    return packed;
}

int64_t CpuBackend::compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                         bool embedding) const {
    return (embedding ? round_up(rows * columns * size_of(compute_type), 64) : 0) +
           packed_bytes(*matmuls_, compute_type, columns, rows) +
           packed_bytes(*matmuls_, compute_type, rows, columns);
}

void CpuBackend::matmul_forward(const Tensor& z, const Tensor& x, const ComputeWeight& weight) {
    const int64_t rows = x.shape[0];
    check_tensor("matmul_forward", "x", x, weight.dtype, {rows, weight.columns});
    check_tensor("matmul_forward", "z", z, z.dtype == DType::float32 ? DType::float32 : weight.dtype,
                 {rows, weight.rows});
    matmuls_->multiply_packed(z.data, z.dtype, x.data, packed_weight(*matmuls_, weight).forward, weight.dtype,
                              rows, weight.columns, weight.rows);
}

void CpuBackend::matmul_input_gradient(const Tensor& dx, const Tensor& dz, const ComputeWeight& weight) {
    const int64_t rows = dz.shape[0];
    check_tensor("matmul_input_gradient", "dz", dz, weight.dtype, {rows, weight.rows});
    check_tensor("matmul_input_gradient", "dx", dx, weight.dtype, {rows, weight.columns});
    matmuls_->multiply_packed(dx.data, dx.dtype, dz.data, packed_weight(*matmuls_, weight).backward,
                              weight.dtype, rows, weight.rows, weight.columns);
}

void CpuBackend::matmul_weight_gradient(const Tensor& dq, const Tensor& dz, const Tensor& x,
                                        bool accumulate) {
    const int64_t inner = dz.shape[0], rows = dz.shape[1], columns = x.shape[1];
    if (dz.dtype == DType::int32)
        throw std::logic_error("matmul_weight_gradient: dz must have a compute type");
    check_tensor("matmul_weight_gradient", "dz", dz, dz.dtype, {inner, rows});
    check_tensor("matmul_weight_gradient", "x", x, dz.dtype, {inner, columns});
    check_tensor("matmul_weight_gradient", "dq", dq, DType::float32, {rows, columns});
    matmuls_->multiply_transposed(dq.as<float>(), dz.data, x.data, dz.dtype, rows, inner, columns,
                                  accumulate);
}

double CpuBackend::peak_flops(DType compute_type) {
    double& peak = compute_type == DType::bfloat16 ? peak_bfloat16_ : peak_float32_;
    if (peak > 0) return peak;
    // The best of several runs of a matmul that fits into the last-level cache: what the cores can do when
    // nothing else is in the way.
    constexpr int64_t rows = 1024, inner = 512, columns = 1024;
    const int64_t element = size_of(compute_type);
    std::vector<char> x(rows * inner * element), y(rows * columns * element);
    std::vector<char> weights(matmuls_->packed_layout(compute_type, inner, columns).get_size());
    using Clock = std::chrono::steady_clock;
    for (int repetition = 0; repetition < 40; ++repetition) {
        const Clock::time_point start = Clock::now();
        matmuls_->multiply_packed(y.data(), compute_type, x.data(), weights.data(), compute_type, rows, inner,
                                  columns);
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        peak = std::max(peak, 2.0 * rows * inner * columns / seconds);
    }
    return peak;
}

}  // namespace train_qat
