// The matmul of a linear layer, z = x qᵀ, and its two gradients, dx = dz q and dq = dzᵀ x, in bfloat16 with float32 sums, by
// Hopper's own instructions: the kernel of hopper_product.cuh with other tiles, and beside the products of all cards.
//
//   forward and input gradient
//     1 128 x 64 tiles, 3 stages     few sums: shows what the ring costs
//     2 128 x 128 tiles, 6 stages
//     3 128 x 256 tiles, 4 stages    each number from shared memory serves most products
//     4 128 x 256 tiles, 3 stages    all sums of a tile have a buffer: none waits for a store before it
//     5 Hopper's kernels             2 or 3, chosen by shape: hopper_matmul.cu
//     6 cuBLASLt, or our kernels of all cards
//   weight gradient: 3 with the rows in one part, in 2, 4 and 8; then 5 and 6
//
// For cards of compute capability 9.0; rows of all matrices must be multiples of 16 bytes (8 numbers).
#include "dev/cuda/matmul_problem.h"
#include "kernels/cuda/hopper_matmul/hopper_matmul.h"
#include "kernels/cuda/hopper_matmul/hopper_product.cuh"
#include "kernels/cuda/platform/hopper_device.h"

namespace train_qat::CU_BACKEND {

namespace {

class HopperMatmul final : public MatmulProblem {
  public:
    HopperMatmul(CudaBackend& backend, const Sizes& sizes)
        : MatmulProblem(backend, sizes), others_(make_dense_matmul(backend.device())) {
        require_hopper(backend.device(), "hopper_matmul", "use such a card");
        hopper_ = make_hopper_matmul(backend.device(), make_dense_matmul(backend.device()));
    }

    std::vector<Operation> operations() override {
        Operation forward = operation(MatmulForm::nt), input = operation(MatmulForm::nn),
                  weight = operation(MatmulForm::tn);
        forward.variants = ladder<MatmulForm::nt>();
        input.variants = ladder<MatmulForm::nn>();
        for (const int splits : {1, 2, 4, 8}) weight.variants.push_back(divided(splits));
        add_chosen(forward, MatmulForm::nt);
        add_chosen(input, MatmulForm::nn);
        add_chosen(weight, MatmulForm::tn);
        return {forward, input, weight};
    }

  private:
    void add_chosen(Operation& operation, MatmulForm form) {
        operation.variants.push_back(variant(form, *hopper_));
        operation.variants.push_back(variant(form, *others_));
    }

    template <MatmulForm form>
    std::vector<Variant> ladder() {
        return {{"128 x 64, 3 stages", [this] { multiply<form, 64, 3>(); }},
                {"128 x 128, 6 stages", [this] { multiply<form, 128, 6>(); }},
                {"128 x 256, 4 stages", [this] { multiply<form, 256, 4>(); }},
                {"128 x 256, 3 stages, 4 buffers", [this] { multiply<form, 256, 3, 4>(); }}};
    }
    template <MatmulForm form, int columns, int stages, int buffers = 2>
    void multiply() {
        const Factors f = factors(form);
        const ProductSize size{f.out.shape[0], f.out.shape[1], f.a.shape[1]};
        launch_hopper_product<HopperProduct<form, columns, stages, Bfloat16Output, buffers>>(
            stream(), backend().device().properties().multiprocessors, size, f.a.as<bfloat16>(),
            f.b.as<bfloat16>(), bfloat16_output(f.out.as<bfloat16>(), size.rows, size.columns), 1);
    }

    // As many parts as there are slices, where these are fewer.
    Variant divided(int splits) {
        const auto slices = static_cast<int>(blocks_for(M_, 64));
        return {"128 x 256, " + std::to_string(splits) + (splits == 1 ? " part" : " parts"),
                [=, this, f = factors(MatmulForm::tn)] {
                    hopper_matmul(backend().device(), MatmulForm::tn, f.out, f.a, f.b, false,
                                  {256, std::min(splits, slices)});
                }};
    }

    std::unique_ptr<DenseMatmul> hopper_, others_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"hopper_matmul",
         "Matmuls of a linear layer in bfloat16 by Hopper's own instructions, forward and gradients.",
         {{"rows", 8192, {67, 1, 300}}, {"outputs", 4096, {104, 8, 328}}, {"inputs", 1024, {72, 8, 320}}},
         [](CudaBackend& backend, const Sizes& sizes) {
             return std::make_unique<HopperMatmul>(backend, sizes);
         }},
        argc, argv);
}
