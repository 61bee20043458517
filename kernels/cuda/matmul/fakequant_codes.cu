// Fused matmuls from packed codes. The kernel knows the number of bits; levels are lowest + code * step, with
// both as arguments.
#include "kernels/cuda/matmul/fakequant_sources.cuh"

namespace train_qat::CU_BACKEND {

namespace {

template <int bits>
void multiply(const FakeQuantProduct& p) {
    const FakeQuantWeight& w = p.weight;
    constexpr float two_to_15 = 32768.0f;
    const float step = level_step(w.grid);
    const PackedCodes<bits> codes{static_cast<const unsigned char*>(w.data),
                                  static_cast<int>(w.rows),
                                  static_cast<int>(w.columns),
                                  code_row_bytes(w.columns, bits),
                                  scales_of(w),
                                  step,
                                  lowest_level(w.grid) - two_to_15 * step};
    launch_fakequant(p, true, codes, codes);
}

}  // namespace

void multiply_codes(const FakeQuantProduct& product) {
    switch (code_bits(product.weight.grid)) {
        case 1:
            return multiply<1>(product);
        case 2:
            return multiply<2>(product);
        case 4:
            return multiply<4>(product);
        default:
            return multiply<8>(product);
    }
}

}  // namespace train_qat::CU_BACKEND
