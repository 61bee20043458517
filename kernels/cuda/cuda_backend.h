// The CUDA backend: one class, one source file per operation, under the names of kernels/cpu/. Each file
// holds the kernels of its operation and then their launchers, the class's member functions.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/checks.h"
#include "kernels/cuda/platform/cuda_options.h"
#include "kernels/cuda/platform/portable.cuh"
#include "kernels/cuda/platform/runtime.h"
#include "kernels/cuda/platform/tuning_table.h"

namespace train_qat::CU_BACKEND {

class DenseMatmul;    // dense_matmul.h
class WeightUpdate;   // weight_update.cuh
struct UpdateTables;  // weight_update.cuh

class CudaBackend final : public Backend {
  public:
    explicit CudaBackend(const CudaOptions& options);
    ~CudaBackend() override;

    std::string describe() const override;
    int64_t available_memory() const override;
    bool supports(DType compute_type) const override { return compute_type != DType::int32; }
    double peak_flops(DType compute_type) override;
    bool host_addressable() const override;
    void* allocate(int64_t bytes) override;
    void release(void* memory) override;
    void copy_to_device(void* device, const void* host, int64_t bytes) override;
    void copy_to_host(void* host, const void* device, int64_t bytes) override;
    void fill_zero(void* device, int64_t bytes) override;
    void synchronize() override;
    void replay(const ReplayKey& key, const std::function<void()>& work) override;

    int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                 bool embedding) const override;
    void initialize_scales(std::span<const ParameterRows> parameters) override;
    void quantize(std::span<const ParameterRows> parameters) override;
    void ste_backward_and_norm(std::span<const ParameterRows> parameters, const Tensor& squares) override;
    void adamw_and_quantize(std::span<const ParameterRows> parameters, const AdamWStep& step,
                            const Tensor& squares) override;

    int64_t weight_message_bytes(const ParameterRows& parameter) const override;
    std::vector<WeightMessage> weight_messages(std::span<const ParameterRows> parameters,
                                               void* buffer) override;
    void write_weight_messages(std::span<const ParameterRows> rows,
                               std::span<const WeightMessage> messages) override;
    void read_weight_messages(std::span<const ParameterRows> parameters,
                              std::span<const WeightMessage> messages) override;

    void matmul_forward(const Tensor& z, const Tensor& x, const ComputeWeight& weight) override;
    void matmul_input_gradient(const Tensor& dx, const Tensor& dz, const ComputeWeight& weight) override;
    void matmul_weight_gradient(const Tensor& dq, const Tensor& dz, const Tensor& x,
                                bool accumulate) override;

    void embedding_forward(const Tensor& y, const Tensor& tokens, const ComputeWeight& weight) override;
    void embedding_backward(const Tensor& dq, const Tensor& dy, const Tensor& tokens,
                            const Tensor& row_scale) override;

    void residual_rmsnorm_forward(const Tensor& residual_out, const Tensor& y, const Tensor& rstd,
                                  const Tensor& residual_in, const Tensor& branch, const Tensor& column_scale,
                                  const Tensor& weight, float epsilon) override;
    void rmsnorm_backward(const Tensor& d_residual, const Tensor& dweight, const Tensor& dz, const Tensor& dy,
                          const Tensor& residual, const Tensor& rstd, const Tensor& weight,
                          const Tensor& column_scale, bool accumulate_residual, bool accumulate_weight,
                          void* workspace) override;
    int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const override;

    void rope_forward(const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                      const Tensor& column_scale, const AttentionShape& shape) override;
    void rope_backward(const Tensor& dqkv, const Tensor& cosines, const Tensor& sines,
                       const Tensor& column_scale, const AttentionShape& shape) override;
    void attention_forward(const Tensor& y, const Tensor& log_sum_exp, const Tensor& qkv,
                           const AttentionShape& shape) override;
    void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& qkv, const Tensor& y,
                            const Tensor& log_sum_exp, const AttentionShape& shape, void* workspace) override;
    int64_t attention_backward_workspace(const AttentionShape& shape) const override;

    void swiglu_forward(const Tensor& y, const Tensor& gate_up, const Tensor& column_scale) override;
    void swiglu_backward(const Tensor& d_gate_up, const Tensor& dy, const Tensor& gate_up,
                         const Tensor& column_scale) override;

    void cross_entropy(const Tensor& losses, const Tensor& d_logits, const Tensor& logits,
                       const Tensor& targets, const Tensor& column_scale, float gradient_factor) override;
    void sum(const Tensor& total, const Tensor& values, bool accumulate) override;

    // ---- for the operations' own files
    const DeviceProperties& properties() const { return runtime_.properties(); }
    CuStream stream() const { return runtime_.stream(); }
    Runtime& runtime() { return runtime_; }
    // At least `bytes` of device memory, 256-byte aligned, until the next call of scratch. Its first use must
    // not lie in recorded work.
    void* scratch(int64_t bytes);
    // Whether a weight's quantized form is packed codes (kernels/codes.h) or levels in its compute type. The
    // same answer for the same arguments.
    bool stores_codes(const ComputeWeight& weight, Grid grid, int64_t group);

  private:
    void quantize(const UpdateTables& tables);
    bool codes_are_faster(const ComputeWeight& weight, Grid grid, int64_t group);

    CudaOptions options_;
    Runtime runtime_;
    TuningTable tuning_;
    std::unique_ptr<DenseMatmul> dense_;
    std::unique_ptr<WeightUpdate> updates_;
    DeviceMemory scratch_;
    struct Recorded {
        bool seen = false;
        std::unique_ptr<Graph> graph;
    };
    std::map<ReplayKey, Recorded> recorded_;
    bool recording_ = false;
};

// Blocks of `threads` threads that cover `count` items.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
    return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace train_qat::CU_BACKEND
