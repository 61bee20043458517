// What the benchmarks of attention share: its data, both passes as operations, and the oracle's answer for some heads.
#pragma once

#include <stdexcept>

#include "dev/cuda/bench.h"

namespace train_qat::CU_BACKEND {

class AttentionProblem : public Problem {
  public:
    AttentionProblem(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          shape_{sizes.at("batch"), sizes.at("sequence"), sizes.at("heads"), sizes.at("kv_heads"),
                 sizes.at("head_dim")},
          width_(shape_.heads * shape_.head_dim),
          qkv_(normals(DType::bfloat16, {shape_.rows(), shape_.qkv_columns()})),
          y_(output(DType::bfloat16, {shape_.rows(), width_})),
          log_sum_exp_(output(DType::float32, {shape_.batch, shape_.heads, shape_.sequence})),
          dy_(normals(DType::bfloat16, {shape_.rows(), width_}, 1e-2)),
          y_in_(output(DType::bfloat16, {shape_.rows(), width_})),
          log_sum_exp_in_(output(DType::float32, {shape_.batch, shape_.heads, shape_.sequence})),
          dqkv_(output(DType::bfloat16, {shape_.rows(), shape_.qkv_columns()})) {
        if (shape_.heads % shape_.kv_heads != 0)
            throw std::runtime_error("attention: --heads must be a multiple of --kv_heads");
    }

  protected:
    // FLOP of the two products of the forward pass, of which the lower triangle.
    double products() const {
        const auto [B, T, H, G, D] = shape_;
        return 2 * static_cast<double>(B * H * T) * static_cast<double>(T) * static_cast<double>(D);
    }
    // Without variants. log_sum_exp_slack: what log_sum_exp may be off by, as a part of its magnitude.
    Operation forward_operation(double log_sum_exp_slack = 0x1p-20) {
        return {.name = "forward",
                .bytes = static_cast<double>(qkv_.tensor().bytes() + y_.bytes()),
                .flops = products(),
                .reset =
                    [this] {
                        poison(y_);
                        poison(log_sum_exp_);
                    },
                .compare = [=, this] { return compare_forward(log_sum_exp_slack); },
                .variants = {}};
    }

    // Without variants. y_in_ and log_sum_exp_in_ must have been filled.
    Operation backward_operation() {
        const auto qkv = static_cast<double>(qkv_.tensor().bytes()), y = static_cast<double>(y_.bytes());
        return {.name = "backward",
                .bytes = 2 * qkv + 2 * y,
                .flops = 5 * products() / 2,
                .reset = [this] { poison(dqkv_); },
                .compare = [this] { return compare_backward(); },
                .variants = {}};
    }

    // The heads that share key/value head g of sequence b, as a problem of its own for the oracle.
    reference::Shape group_shape() const {
        return {1, shape_.sequence, shape_.heads / shape_.kv_heads, 1, shape_.head_dim};
    }
    template <typename Source>
    Array group_of(const Source& rows, int64_t b, int64_t g, bool with_keys) const {
        const auto [B, T, H, G, D] = shape_;
        const int64_t queries = H / G * D, columns = with_keys ? shape_.qkv_columns() : H * D;
        Array result;
        for (int64_t t = 0; t < T; ++t) {
            const int64_t row = (b * T + t) * columns;
            const auto append = [&](int64_t first, int64_t count) {
                for (int64_t i = 0; i < count; ++i) result.push_back(rows[row + first + i]);
            };
            append(g * queries, queries);
            if (!with_keys) continue;
            append((H + g) * D, D);
            append((H + G + g) * D, D);
        }
        return result;
    }
    // Of the device's numbers: one sequence is read, and shifted to where group_of looks for it.
    struct Read {
        Array values;
        int64_t first;
        double operator[](int64_t i) const { return values[i - first]; }
    };
    Read sequence_of(const Tensor& tensor, int64_t b) {
        const int64_t T = shape_.sequence, columns = tensor.shape[1];
        return {read(tensor.rows(b * T, T)), b * T * columns};
    }
    Array statistics_of(const Tensor& tensor, int64_t b, int64_t g) {
        const Array all = read(tensor.rows(b, 1));
        const int64_t count = shape_.heads / shape_.kv_heads * shape_.sequence;
        return Array(all.begin() + g * count, all.begin() + (g + 1) * count);
    }

    // The first and the last key/value head: of different sequences where there are several.
    template <typename Body>
    void for_sampled_groups(Body&& body) {
        body(int64_t{0}, int64_t{0});
        if (shape_.batch * shape_.kv_heads > 1) body(shape_.batch - 1, shape_.kv_heads - 1);
    }

    // Softmax weights are rounded to bfloat16 before they are multiplied with: half a unit of each term.
    static constexpr double slack = 0x1p-8;

    Comparison compare_forward(double log_sum_exp_slack) {
        Comparison result;
        for_sampled_groups([&](int64_t b, int64_t g) {
            const reference::AttentionForward expected =
                reference::attention_forward(group_of(qkv_, b, g, true), group_shape());
            result.add(group_of(sequence_of(y_, b), b, g, false), expected.y, DType::bfloat16, slack);
            const Array log_sum_exp = statistics_of(log_sum_exp_, b, g);
            for (size_t i = 0; i < log_sum_exp.size(); ++i)
                result.add(log_sum_exp[i], expected.log_sum_exp[i], expected.log_sum_exp_magnitude[i],
                           DType::float32, log_sum_exp_slack);
        });
        return result;
    }

    Comparison compare_backward() {
        Comparison result;
        for_sampled_groups([&](int64_t b, int64_t g) {
            const reference::Result expected =
                reference::attention_backward(group_of(dy_, b, g, false), group_of(qkv_, b, g, true),
                                              group_of(sequence_of(y_in_, b), b, g, false),
                                              statistics_of(log_sum_exp_in_, b, g), group_shape());
            result.add(group_of(sequence_of(dqkv_, b), b, g, true), expected, DType::bfloat16, slack);
        });
        return result;
    }

    AttentionShape shape_;
    int64_t width_;
    Numbers qkv_;
    Tensor y_, log_sum_exp_;  // what variants of the forward pass write
    Numbers dy_;
    Tensor y_in_, log_sum_exp_in_;  // the forward pass's, for the backward pass
    Tensor dqkv_;
};

}  // namespace train_qat::CU_BACKEND
