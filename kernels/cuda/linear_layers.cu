// The matmuls of linear layers:
//     forward          z  = x qᵀ
//     input gradient   dx = dz q
//     weight gradient  dq = dzᵀ x
// and the choice of their kernels: by the form that the weight has, and of that form for quantized weights. Our own
// kernels: matmul_bfloat16.cu, matmul_float32.cu, hopper_matmul.cu, fakequant_matmul.cu, hopper_fakequant_matmul.cu.
//
// Floor: 2 M N K FLOP each, over the tensor cores' peak.
#include "kernels/cuda/linear_layers.h"

#include <cstdio>
#include <stdexcept>
#include <string>

#include "kernels/cuda/hopper_matmul/hopper_fakequant_matmul.h"
#include "kernels/cuda/hopper_matmul/hopper_matmul.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "kernels/cuda/platform/hopper_device.h"
#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

namespace {

// What Hopper's kernels do not take goes to those of all cards; stores_codes has said so.
bool on_hopper(const Device& device, const ComputeWeight& weight, const Tensor& out) {
    return device.options().qat_gemm == QatGemm::hopper && out.dtype == DType::bfloat16 &&
           hopper_refusal(weight.rows, weight.columns, weight.code_group).empty();
}

}  // namespace

void matmul_forward(Device& device, DenseMatmul& dense, const MatmulForward& a) {
    if (a.weight.codes == Grid::none)
        dense.multiply(MatmulForm::nt, a.z, a.x, dense_weight(a.weight), false);
    else if (on_hopper(device, a.weight, a.z))
        hopper_matmul_forward(device, a.z, a.x, a.weight);
    else
        fakequant_matmul_forward(device.stream(), a.z, a.x, a.weight);
}

void matmul_input_gradient(Device& device, DenseMatmul& dense, const MatmulInputGradient& a) {
    if (a.weight.codes == Grid::none)
        dense.multiply(MatmulForm::nn, a.dx, a.dz, dense_weight(a.weight), false);
    else if (on_hopper(device, a.weight, a.dx))
        hopper_matmul_input_gradient(device, a.dx, a.dz, a.weight);
    else
        fakequant_matmul_input_gradient(device.stream(), a.dx, a.dz, a.weight);
}

void matmul_weight_gradient(DenseMatmul& dense, const MatmulWeightGradient& a) {
    dense.multiply(MatmulForm::tn, a.dq, a.dz, a.x, a.accumulate);
}

// ---- packed codes or plain levels

namespace {

// Times the forward and the input-gradient matmul in both forms, on zeros: times do not depend on the numbers.
bool codes_are_faster(Device& device, DenseMatmul& dense, const ComputeWeight& weight, Grid grid,
                      int64_t group) {
    const CudaOptions& options = device.options();
    const int64_t rows = options.matmul_rows;
    const DeviceBuffer x_memory(device, rows * weight.columns * size_of(DType::bfloat16));
    const DeviceBuffer z_memory(device, rows * weight.rows * size_of(DType::bfloat16));
    const DeviceBuffer storage(device, compute_weight_bytes(weight.rows, weight.columns, weight.dtype));
    const Tensor x(x_memory.data(), DType::bfloat16, {rows, weight.columns});
    const Tensor z(z_memory.data(), DType::bfloat16, {rows, weight.rows});
    ComputeWeight trial = weight;
    trial.storage = storage.data();
    trial.code_group = group;
    double seconds[2];
    for (int form = 0; form < 2; ++form) {
        constexpr int repetitions = 5;
        trial.codes = form == 0 ? Grid::none : grid;
        const auto both = [&] {
            matmul_forward(device, dense, {z, x, trial});
            matmul_input_gradient(device, dense, {x, z, trial});
        };
        seconds[form] = device.runtime().seconds(both, repetitions);
    }
    if (options.report) {
        char text[200];
        std::snprintf(text, sizeof text, "matmul %lld x %lld, %d-bit codes: fused %.0f us, %s %.0f us: %s",
                      static_cast<long long>(weight.rows), static_cast<long long>(weight.columns),
                      code_bits(grid), seconds[1] * 1e6, dense.name(), seconds[0] * 1e6,
                      seconds[1] < seconds[0] ? "fused" : dense.name());
        options.report(text);
    }
    return seconds[1] < seconds[0];
}

void report_hopper_refusal(Device& device, const ComputeWeight& weight, int64_t group) {
    const std::string refusal = hopper_refusal(weight.rows, weight.columns, group);
    if (!refusal.empty())
        device.report_once("-qat_gemm hopper: matmul " + std::to_string(weight.rows) + " x " +
                           std::to_string(weight.columns) + ": " + refusal + ": fused");
}

}  // namespace

bool stores_codes(Device& device, DenseMatmul& dense, const ComputeWeight& weight, Grid grid, int64_t group) {
    const CudaOptions& options = device.options();
    const bool possible = grid != Grid::none && weight.dtype == DType::bfloat16 && !weight.embedding &&
                          (group == weight.columns || group == 32 || group == 64 || group == 128);
    if (!possible || options.qat_gemm == QatGemm::cublaslt) return false;
    if (options.qat_gemm == QatGemm::hopper) report_hopper_refusal(device, weight, group);
    if (options.qat_gemm == QatGemm::fused || options.qat_gemm == QatGemm::hopper) return true;
    const std::string key = "qat-gemm-" + std::to_string(weight.rows) + "x" + std::to_string(weight.columns) +
                            "-" + std::to_string(code_bits(grid)) + "bit-group" + std::to_string(group) +
                            "-rows" + std::to_string(options.matmul_rows) +
                            (options.gemm == DenseGemm::hopper ? "-hopper" : "");
    const std::string* known = device.tuning().find(key);
    if (known != nullptr && (*known == "codes" || *known == "levels")) return *known == "codes";
    const bool codes = codes_are_faster(device, dense, weight, grid, group);
    device.tuning().set(key, codes ? "codes" : "levels");
    return codes;
}

// ---- dense matmuls

std::unique_ptr<DenseMatmul> choose_dense_matmul(Device& device) {
    const DenseGemm wanted = device.options().gemm;
#if !defined(TRAIN_QAT_CUBLASLT)
    if (wanted == DenseGemm::cublaslt)
        throw std::runtime_error("-gemm cublaslt: this program was built without cuBLASLt; give -gemm auto");
#endif
    if (wanted != DenseGemm::hopper) return make_dense_matmul(device);
    require_hopper(device, "-gemm hopper", "use auto");
    return make_hopper_matmul(device, make_dense_matmul(device));
}

}  // namespace train_qat::CU_BACKEND
