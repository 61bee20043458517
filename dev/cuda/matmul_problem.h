// What the benchmarks of dense matmuls share: the data of a linear layer, its forward pass and its two gradients as operations
// without variants, and the oracle's answer for some rows.
#pragma once

#include "dev/cuda/bench.h"
#include "kernels/cuda/matmul/dense_matmul.h"

namespace train_qat::CU_BACKEND {

class MatmulProblem : public Problem {
  public:
    MatmulProblem(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          N_(sizes.at("outputs")),
          K_(sizes.at("inputs")),
          x_(normals(DType::bfloat16, {M_, K_})),
          q_(normals(DType::bfloat16, {N_, K_})),
          dz_(normals(DType::bfloat16, {M_, N_})),
          z_(output(DType::bfloat16, {M_, N_})),
          dx_(output(DType::bfloat16, {M_, K_})),
          dq_(output(DType::float32, {N_, K_})) {}

  protected:
    // The operation of a form: forward nt, input gradient nn, weight gradient tn.
    Operation operation(MatmulForm form) {
        const Factors f = factors(form);
        const char* const name = form == MatmulForm::nt   ? "forward, z = x qT"
                                 : form == MatmulForm::nn ? "input gradient, dx = dz q"
                                                          : "weight gradient, dq = dzT x";
        return {.name = name,
                .bytes = static_cast<double>(f.a.bytes() + f.b.bytes() + f.out.bytes()),
                .flops = 2.0 * static_cast<double>(M_) * static_cast<double>(N_) * static_cast<double>(K_),
                .reset = [this, out = f.out] { poison(out); },
                .compare =
                    [this, form] {
                        return form == MatmulForm::nt   ? compare_forward()
                               : form == MatmulForm::nn ? compare_input_gradient()
                                                        : compare_weight_gradient();
                    },
                .variants = {}};
    }

    struct Factors {
        Tensor out, a, b;
    };
    Factors factors(MatmulForm form) const {
        return form == MatmulForm::nt   ? Factors{z_, x_.tensor(), q_.tensor()}
               : form == MatmulForm::nn ? Factors{dx_, dz_.tensor(), q_.tensor()}
                                        : Factors{dq_, dz_.tensor(), x_.tensor()};
    }
    Variant variant(MatmulForm form, DenseMatmul& dense) {
        return {dense.name(),
                [f = factors(form), form, &dense] { dense.multiply(form, f.out, f.a, f.b, false); }};
    }

    int64_t M_, N_, K_;
    Numbers x_, q_, dz_;
    Tensor z_, dx_, dq_;

  private:
    Comparison compare_forward() {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(read(z_.rows(m, 1)),
                       reference::matmul_forward(x_.rows(m, 1), {q_.all(), {}}, 1, N_, K_), DType::bfloat16,
                       float32_sum(K_));
        return result;
    }

    Comparison compare_input_gradient() {
        Comparison result;
        for (int64_t m : sample(M_))
            result.add(read(dx_.rows(m, 1)),
                       reference::matmul_input_gradient(dz_.rows(m, 1), q_.all(), 1, N_, K_), DType::bfloat16,
                       float32_sum(N_));
        return result;
    }

    Comparison compare_weight_gradient() {
        Comparison result;
        const Array x = x_.all();
        for (int64_t n : sample(N_)) {
            Array column(M_);
            for (int64_t m = 0; m < M_; ++m) column[m] = dz_[m * N_ + n];
            result.add(read(dq_.rows(n, 1)), reference::matmul_weight_gradient(column, x, {}, M_, 1, K_),
                       DType::float32, float32_sum(M_));
        }
        return result;
    }
};

}  // namespace train_qat::CU_BACKEND
