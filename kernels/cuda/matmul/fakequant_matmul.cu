// Entry of the fused matmuls: checks, and the choice of the file whose kernels know the source of the
// weights.
#include "kernels/cuda/matmul/fakequant_matmul.h"

#include <bit>
#include <string>

#include "kernels/checks.h"
#include "kernels/cuda/matmul/fakequant_sources.cuh"

namespace train_qat::CU_BACKEND {

namespace {

void check_weight(const char* operation, const FakeQuantWeight& weight) {
    const auto fail = [&](const char* what) {
        throw std::logic_error(std::string(operation) + ": the weight's " + what);
    };
    if (weight.data == nullptr) fail("data is missing");
    if (weight.source == WeightSource::bfloat16) return;
    if (weight.grid == Grid::none) fail("grid is none");
    const bool one_scale = weight.group == weight.columns;
    if (!one_scale && (weight.group < 8 || !std::has_single_bit(static_cast<uint64_t>(weight.group)) ||
                       weight.columns % weight.group != 0))
        fail("group is neither a row nor a power of two, 8 or more, that divides it");
    if (weight.scales == nullptr && (weight.source != WeightSource::codes || !one_scale))
        fail("scales are missing");
    if (weight.source == WeightSource::codes && reinterpret_cast<uintptr_t>(weight.data) % 16 != 0)
        fail("codes do not begin at a multiple of 16 bytes");
}

void multiply(const FakeQuantProduct& p, const float* column_scale) {
    switch (p.weight.source) {
        case WeightSource::bfloat16: {
            const Tensor out(p.out.data, p.out.is_float32 ? DType::float32 : DType::bfloat16,
                             {p.out.rows, p.out.columns});
            const Tensor q(const_cast<void*>(p.weight.data), DType::bfloat16,
                           {p.weight.rows, p.weight.columns});
            return matmul_bfloat16(p.stream, p.form, out, p.left, q, false, column_scale, p.size);
        }
        case WeightSource::master_float32:
            return multiply_float32_master(p);
        case WeightSource::master_bfloat16:
            return multiply_bfloat16_master(p);
        case WeightSource::codes:
            return multiply_codes(p);
    }
}

}  // namespace

void fakequant_matmul_forward(CuStream stream, const Tensor& z, const Tensor& x,
                              const FakeQuantWeight& weight, const float* column_scale, TileSize size) {
    constexpr const char* operation = "fakequant_matmul_forward";
    check_weight(operation, weight);
    check_tensor(operation, "x", x, DType::bfloat16, {x.shape[0], weight.columns});
    check_tensor(operation, "z", z, z.dtype == DType::float32 ? DType::float32 : DType::bfloat16,
                 {x.shape[0], weight.rows});
    multiply({stream, MatmulForm::nt, product_of(z, false, column_scale), x, weight, size}, column_scale);
}

void fakequant_matmul_input_gradient(CuStream stream, const Tensor& dx, const Tensor& dz,
                                     const FakeQuantWeight& weight, TileSize size) {
    constexpr const char* operation = "fakequant_matmul_input_gradient";
    check_weight(operation, weight);
    check_tensor(operation, "dz", dz, DType::bfloat16, {dz.shape[0], weight.rows});
    check_tensor(operation, "dx", dx, DType::bfloat16, {dz.shape[0], weight.columns});
    multiply({stream, MatmulForm::nn, product_of(dx, false, nullptr), dz, weight, size}, nullptr);
}

}  // namespace train_qat::CU_BACKEND
