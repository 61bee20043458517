// A backend that passes every operation on to another one and adds up where the time goes: seconds,
// floating-point operations of matmuls and attention, bytes of everything else.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "kernels/backend.h"

namespace train_qat {

class ProfilingBackend final : public Backend {
  public:
    struct Entry {
        double seconds = 0;
        double flops = 0;
        double bytes = 0;
        int64_t calls = 0;
    };

    explicit ProfilingBackend(Backend& inner) : inner_(inner) {}
    const std::map<std::string, Entry>& entries() const { return entries_; }
    void reset() { entries_.clear(); }

    std::string describe() const override { return inner_.describe(); }
    int64_t available_memory() const override { return inner_.available_memory(); }
    bool supports(DType type) const override { return inner_.supports(type); }
    double peak_flops(DType type) override { return inner_.peak_flops(type); }
    void* allocate(int64_t bytes) override { return inner_.allocate(bytes); }
    void release(void* memory) override { inner_.release(memory); }
    void copy_to_device(void* device, const void* host, int64_t bytes) override {
        inner_.copy_to_device(device, host, bytes);
    }
    void copy_to_host(void* host, const void* device, int64_t bytes) override {
        inner_.copy_to_host(host, device, bytes);
    }
    void fill_zero(void* device, int64_t bytes) override { inner_.fill_zero(device, bytes); }
    void synchronize() override { inner_.synchronize(); }
    int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType type, bool embedding) const override {
        return inner_.compute_weight_bytes(rows, columns, type, embedding);
    }
    int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const override {
        return inner_.rmsnorm_backward_workspace(rows, columns);
    }
    int64_t attention_backward_workspace(const AttentionShape& shape) const override {
        return inner_.attention_backward_workspace(shape);
    }
    void initialize_scales(std::span<const ParameterRows> p) override {
        measure("initialize_scales", 0, 4.0 * elements(p), [&] { inner_.initialize_scales(p); });
    }
    void quantize(std::span<const ParameterRows> p) override {
        measure("quantize", 0, 8.0 * elements(p), [&] { inner_.quantize(p); });
    }
    void ste_backward_and_norm(std::span<const ParameterRows> p, const Tensor& squares) override {
        // Gradient read; with a grid also the weight read and the gradient written.
        const double per_element = p.front().grid == Grid::none ? 4 : 12;
        measure("ste_backward_and_norm", 0, per_element * elements(p),
                [&] { inner_.ste_backward_and_norm(p, squares); });
    }
    void adamw_and_quantize(std::span<const ParameterRows> p, const AdamWStep& step,
                            const Tensor& squares) override {
        // Four arrays read, three written, and the two packed copies in two bytes.
        measure("adamw_and_quantize", 0, 32.0 * elements(p),
                [&] { inner_.adamw_and_quantize(p, step, squares); });
    }
    void matmul_forward(const Tensor& y, const Tensor& x, const ComputeWeight& w) override {
        measure("matmul_forward", 2.0 * x.shape[0] * w.rows * w.columns, 0,
                [&] { inner_.matmul_forward(y, x, w); });
    }
    void matmul_input_gradient(const Tensor& dx, const Tensor& dz, const ComputeWeight& w) override {
        measure("matmul_input_gradient", 2.0 * dz.shape[0] * w.rows * w.columns, 0,
                [&] { inner_.matmul_input_gradient(dx, dz, w); });
    }
    void matmul_weight_gradient(const Tensor& dq, const Tensor& dz, const Tensor& x,
                                bool accumulate) override {
        measure("matmul_weight_gradient", 2.0 * dz.shape[0] * dz.shape[1] * x.shape[1], 0,
                [&] { inner_.matmul_weight_gradient(dq, dz, x, accumulate); });
    }
    void embedding_forward(const Tensor& y, const Tensor& tokens, const ComputeWeight& w) override {
        measure("embedding_forward", 0, 1.5 * y.bytes(), [&] { inner_.embedding_forward(y, tokens, w); });
    }
    void embedding_backward(const Tensor& dq, const Tensor& dy, const Tensor& tokens,
                            const Tensor& row_scale) override {
        measure("embedding_backward", 0, 3.0 * dy.bytes(),
                [&] { inner_.embedding_backward(dq, dy, tokens, row_scale); });
    }
    void residual_rmsnorm_forward(const Tensor& out, const Tensor& y, const Tensor& rstd, const Tensor& in,
                                  const Tensor& branch, const Tensor& scale, const Tensor& weight,
                                  float epsilon) override {
        measure("residual_rmsnorm_forward", 0, double(out.bytes() + y.bytes() + in.bytes() + branch.bytes()),
                [&] { inner_.residual_rmsnorm_forward(out, y, rstd, in, branch, scale, weight, epsilon); });
    }
    void rmsnorm_backward(const Tensor& dr, const Tensor& dw, const Tensor& dz, const Tensor& dy,
                          const Tensor& residual, const Tensor& rstd, const Tensor& weight,
                          const Tensor& column_scale, bool accumulate_residual, bool accumulate_weight,
                          void* workspace) override {
        measure(
            "rmsnorm_backward", 0,
            double(dr.bytes() * (accumulate_residual ? 2 : 1) + dz.bytes() + dy.bytes() + residual.bytes()),
            [&] {
                inner_.rmsnorm_backward(dr, dw, dz, dy, residual, rstd, weight, column_scale,
                                        accumulate_residual, accumulate_weight, workspace);
            });
    }
    void rope_forward(const Tensor& qkv, const Tensor& c, const Tensor& s, const Tensor& scale,
                      const AttentionShape& shape) override {
        measure("rope_forward", 0, 2.0 * qkv.bytes(), [&] { inner_.rope_forward(qkv, c, s, scale, shape); });
    }
    void rope_backward(const Tensor& dqkv, const Tensor& c, const Tensor& s, const Tensor& column_scale,
                       const AttentionShape& shape) override {
        measure("rope_backward", 0, 2.0 * dqkv.bytes(),
                [&] { inner_.rope_backward(dqkv, c, s, column_scale, shape); });
    }
    void attention_forward(const Tensor& y, const Tensor& log_sum_exp, const Tensor& qkv,
                           const AttentionShape& shape) override {
        measure("attention_forward", 4 * causal_pairs(shape), 0,
                [&] { inner_.attention_forward(y, log_sum_exp, qkv, shape); });
    }
    void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& qkv, const Tensor& y,
                            const Tensor& log_sum_exp, const AttentionShape& shape,
                            void* workspace) override {
        measure("attention_backward", 10 * causal_pairs(shape), 0,
                [&] { inner_.attention_backward(dqkv, dy, qkv, y, log_sum_exp, shape, workspace); });
    }
    void swiglu_forward(const Tensor& y, const Tensor& gate_up, const Tensor& scale) override {
        measure("swiglu_forward", 0, double(y.bytes() + gate_up.bytes()),
                [&] { inner_.swiglu_forward(y, gate_up, scale); });
    }
    void swiglu_backward(const Tensor& d, const Tensor& dy, const Tensor& gate_up,
                         const Tensor& scale) override {
        measure("swiglu_backward", 0, double(d.bytes() + dy.bytes() + gate_up.bytes()),
                [&] { inner_.swiglu_backward(d, dy, gate_up, scale); });
    }
    void cross_entropy(const Tensor& losses, const Tensor& d, const Tensor& logits, const Tensor& targets,
                       const Tensor& scale, float factor) override {
        measure("cross_entropy", 0, double(d.bytes() + logits.bytes()),
                [&] { inner_.cross_entropy(losses, d, logits, targets, scale, factor); });
    }
    void sum(const Tensor& total, const Tensor& values, bool accumulate) override {
        measure("sum", 0, double(values.bytes()), [&] { inner_.sum(total, values, accumulate); });
    }

  private:
    static double elements(std::span<const ParameterRows> parameters) {
        double count = 0;
        for (const ParameterRows& p : parameters) count += static_cast<double>(p.elements());
        return count;
    }
    // Pairs of query and visible key, times the head dimension.
    static double causal_pairs(const AttentionShape& s) {
        return 0.5 * s.batch * s.heads * s.sequence * (s.sequence + 1) * s.head_dim;
    }
    template <typename Operation>
    void measure(const char* name, double flops, double bytes, Operation&& operation) {
        const auto start = std::chrono::steady_clock::now();
        operation();
        inner_.synchronize();
        Entry& entry = entries_[name];
        entry.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        entry.flops += flops;
        entry.bytes += bytes;
        ++entry.calls;
    }

    Backend& inner_;
    std::map<std::string, Entry> entries_;
};

}  // namespace train_qat
