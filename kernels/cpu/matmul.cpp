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

void CpuBackend::compute(const MatmulForward& args) {
    const int64_t rows = args.x.shape[0];
    matmuls_->multiply_packed(args.z.data, args.z.dtype, args.x.data,
                              packed_weight(*matmuls_, args.weight).forward, args.weight.dtype, rows,
                              args.weight.columns, args.weight.rows);
}

void CpuBackend::compute(const MatmulInputGradient& args) {
    const int64_t rows = args.dz.shape[0];
    matmuls_->multiply_packed(args.dx.data, args.dx.dtype, args.dz.data,
                              packed_weight(*matmuls_, args.weight).backward, args.weight.dtype, rows,
                              args.weight.rows, args.weight.columns);
}

void CpuBackend::compute(const MatmulWeightGradient& args) {
    const int64_t inner = args.dz.shape[0], rows = args.dz.shape[1], columns = args.x.shape[1];
    matmuls_->multiply_transposed(args.dq.as<float>(), args.dz.data, args.x.data, args.dz.dtype, rows, inner,
                                  columns, args.accumulate);
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
