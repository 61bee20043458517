// Dense matmuls on Hopper: which kernel of hopper_product.cuh a product takes, its tensor maps, and the sum over splits.
//
// Floor: 2 M N K FLOP on tensor cores. A weight gradient has few tiles and long sums, over all tokens: its inner dimension is
// divided until the tiles fill the card. The sums of each split then lie in scratch memory, and a second kernel adds
// them in their order:
//     out (+)= sum over s of partial[s]
// Floor of that kernel: (splits + 1) 4 bytes a number, and 4 more where it accumulates.
#include "kernels/cuda/hopper_matmul/hopper_matmul.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda/hopper_matmul/hopper_product.cuh"
#include "kernels/cuda/hopper_matmul/split_sum.h"

namespace train_qat::CU_BACKEND {

namespace {

ProductSize size_of_product(MatmulForm form, const Tensor& out, const Tensor& a) {
    return {out.shape[0], out.shape[1], a.shape[form == MatmulForm::tn ? 0 : 1]};
}

template <MatmulForm form, typename Output>
void launch(Device& device, const ProductSize& size, const ProductPlan& plan, const Tensor& a,
            const Tensor& b, const Output& output) {
    with_product_tile(plan.tile_columns, [&]<int columns, int stages>() {
        launch_hopper_product<HopperProduct<form, columns, stages, Output>>(
            device.stream(), device.properties().multiprocessors, size, a.as<bfloat16>(), b.as<bfloat16>(),
            output, plan.splits);
    });
}

template <MatmulForm form>
void multiply(Device& device, const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate,
              const ProductPlan& plan) {
    const ProductSize size = size_of_product(form, out, a);
    if (out.dtype == DType::bfloat16)
        return launch<form>(device, size, plan, a, b,
                            bfloat16_output(out.as<bfloat16>(), size.rows, size.columns));
    float* sums = out.as<float>();
    if (plan.splits > 1) sums = static_cast<float*>(device.scratch(plan.splits * out.bytes()));
    launch<form>(device, size, plan, a, b,
                 float32_output(sums, size.rows, size.columns, plan.splits, accumulate && plan.splits == 1));
    if (plan.splits > 1) add_splits(device.stream(), out, sums, plan.splits, accumulate);
}

}  // namespace

std::string hopper_product_refusal(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
    if (a.dtype != DType::bfloat16 || b.dtype != DType::bfloat16) return "operands must be bfloat16";
    if (accumulate && out.dtype != DType::float32) return "only float32 sums can go on";
    for (const Tensor* matrix : {&a, &b, &out})
        if (matrix->shape[1] * size_of(matrix->dtype) % 16 != 0 ||
            reinterpret_cast<uintptr_t>(matrix->data) % 16 != 0)
            return "tensor maps need rows of whole 16 bytes";
    return "";
}

ProductPlan plan_product(int64_t rows, int64_t columns, int64_t inner, bool splittable, int multiprocessors) {
    // Times in slices of a wide tile, from prototypes on an H100: of a narrow tile's slice; of the way of a tile's sums out,
    // which nothing overlaps; and of that way through scratch memory and the sum over splits.
    constexpr double narrow_slice = 0.6, way_out = 4, way_through_scratch = 32;
    constexpr int64_t most_splits = 16, most_scratch = 64 << 20;
    const int64_t slices = blocks_for(inner, 64);
    ProductPlan best{wide_columns, 1};
    double least = 0;
    for (const int tile : {wide_columns, narrow_columns}) {
        const int64_t tiles = int64_t{blocks_for(rows, 128)} * blocks_for(columns, tile);
        for (int64_t splits = 1; splits <= (splittable ? std::min(most_splits, slices) : 1); ++splits) {
            if (splits > 1 && splits * rows * columns * 4 > most_scratch) break;
            const double rounds = blocks_for(tiles * splits, multiprocessors);
            const double of_split = static_cast<double>((slices + splits - 1) / splits) +
                                    (splits > 1 ? way_through_scratch : way_out);
            const double time = rounds * of_split * (tile == wide_columns ? 1.0 : narrow_slice);
            if (least > 0 && time >= least) continue;
            best = {tile, static_cast<int>(splits)};
            least = time;
        }
    }
    return best;
}

void hopper_matmul(Device& device, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                   bool accumulate, const ProductPlan& plan) {
    const std::string refusal = hopper_product_refusal(out, a, b, accumulate);
    if (!refusal.empty()) throw std::logic_error("hopper_matmul: " + refusal);
    const int64_t most_splits =
        out.dtype == DType::float32 ? blocks_for(size_of_product(form, out, a).inner, 64) : 1;
    if ((plan.tile_columns != wide_columns && plan.tile_columns != narrow_columns) || plan.splits < 1 ||
        plan.splits > most_splits)
        throw std::logic_error("hopper_matmul: has no such tiles, or not so many splits");
    if (form == MatmulForm::nt)
        multiply<MatmulForm::nt>(device, out, a, b, accumulate, plan);
    else if (form == MatmulForm::nn)
        multiply<MatmulForm::nn>(device, out, a, b, accumulate, plan);
    else
        multiply<MatmulForm::tn>(device, out, a, b, accumulate, plan);
}

namespace {

class HopperMatmul final : public DenseMatmul {
  public:
    HopperMatmul(Device& device, std::unique_ptr<DenseMatmul> others)
        : device_(device), others_(std::move(others)) {}

    const char* name() const override { return "Hopper's kernels"; }

    void multiply(MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                  bool accumulate) override {
        const std::string refusal = hopper_product_refusal(out, a, b, accumulate);
        if (refusal.empty()) {
            const ProductSize size = size_of_product(form, out, a);
            const ProductPlan plan =
                plan_product(size.rows, size.columns, size.inner, out.dtype == DType::float32,
                             device_.properties().multiprocessors);
            return hopper_matmul(device_, form, out, a, b, accumulate, plan);
        }
        const bool any_shape = a.dtype != DType::bfloat16;
        device_.report_once(
            "-gemm hopper: " + (any_shape ? "" : "matmul of " + text(a) + " and " + text(b) + ": ") +
            refusal + ": by " + others_->name());
        others_->multiply(form, out, a, b, accumulate);
    }

  private:
    static std::string text(const Tensor& matrix) {
        return std::to_string(matrix.shape[0]) + " x " + std::to_string(matrix.shape[1]);
    }

    Device& device_;
    std::unique_ptr<DenseMatmul> others_;
};

}  // namespace

std::unique_ptr<DenseMatmul> make_hopper_matmul(Device& device, std::unique_ptr<DenseMatmul> others) {
    return std::make_unique<HopperMatmul>(device, std::move(others));
}

}  // namespace train_qat::CU_BACKEND
