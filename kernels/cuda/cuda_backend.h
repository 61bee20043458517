// The CUDA backend: owns a device and hands each operation to its room, kernels/cuda/{rows,attention,matmul,weights}/.
// An operation's file there has the name of kernels/cpu/'s, and holds its kernels and then their launcher, a function
// of the device and the operation's arguments.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/generation/generation.h"
#include "kernels/cuda/hopper_matmul/hopper_combined.h"
#include "kernels/cuda/linear_layers.h"
#include "kernels/cuda/platform/device.h"
#include "kernels/cuda/rows/rows.h"
#include "kernels/cuda/weights/weights.h"

namespace train_qat::CU_BACKEND {

class CudaBackend final : public Backend {
  public:
    explicit CudaBackend(const CudaOptions& options);

    Device& device() { return device_; }

    std::string describe() const override;
    int64_t available_memory() const override;
    bool supports(DType compute_type) const override { return compute_type != DType::int32; }
    double peak_flops(DType compute_type) override;
    std::string peak_source(DType compute_type) const override;
    double read_bandwidth(int64_t bytes) override { return CU_BACKEND::read_bandwidth(device_, bytes); }
    bool host_addressable() const override;
    void* allocate(int64_t bytes) override { return device_.allocate(bytes); }
    void release(void* memory) override { device_.release(memory); }
    void copy_to_device(void* device, const void* host, int64_t bytes) override;
    void copy_to_host(void* host, const void* device, int64_t bytes) override;
    void fill_zero(void* device, int64_t bytes) override;
    void synchronize() override;

    int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type, bool) const override {
        return CU_BACKEND::compute_weight_bytes(rows, columns, compute_type);
    }
    int64_t preferred_logit_rows(int64_t rows, int64_t vocabulary, DType logits) const override;
    int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const override {
        return CU_BACKEND::rmsnorm_backward_workspace(rows, columns);
    }
    int64_t bias_backward_workspace(int64_t rows, int64_t columns) const override {
        return CU_BACKEND::bias_backward_workspace(rows, columns);
    }
    int64_t head_norm_backward_workspace(const AttentionShape& shape) const override {
        return CU_BACKEND::head_norm_backward_workspace(shape);
    }
    int64_t attention_backward_workspace(const AttentionShape& shape) const override {
        return CU_BACKEND::attention_backward_workspace(device_, shape);
    }
    bool wants_attention_remainder() const override { return CU_BACKEND::wants_attention_remainder(device_); }
    int64_t weight_message_bytes(const ParameterRows& parameter) const override {
        return CU_BACKEND::weight_message_bytes(parameter);
    }

  protected:
    void compute(const MatmulForward& a) override { CU_BACKEND::matmul_forward(device_, *dense_, a); }
    void compute(const MatmulInputGradient& a) override {
        CU_BACKEND::matmul_input_gradient(device_, *dense_, a);
    }
    void compute(const MatmulWeightGradient& a) override { CU_BACKEND::matmul_weight_gradient(*dense_, a); }
    void compute(const MatmulRopeForward& a) override {
        if (!combines(device_, a)) return Backend::compute(a);
        observed(a, [&] { hopper_matmul_rope_forward(device_, a); });
    }
    void compute(const MatmulSwigluForward& a) override {
        if (!combines(device_, a)) return Backend::compute(a);
        observed(a, [&] { hopper_matmul_swiglu_forward(device_, a); });
    }

    void compute(const BiasForward& a) override { CU_BACKEND::bias_forward(device_, a); }
    void compute(const BiasBackward& a) override { CU_BACKEND::bias_backward(device_, a); }
    void compute(const EmbeddingForward& a) override { CU_BACKEND::embedding_forward(device_, a); }
    void compute(const EmbeddingBackward& a) override { CU_BACKEND::embedding_backward(device_, a); }
    void compute(const ResidualRmsnormForward& a) override {
        CU_BACKEND::residual_rmsnorm_forward(device_, a);
    }
    void compute(const RmsnormBackward& a) override { CU_BACKEND::rmsnorm_backward(device_, a); }
    void compute(const HeadNormForward& a) override { CU_BACKEND::head_norm_forward(device_, a); }
    void compute(const HeadNormBackward& a) override { CU_BACKEND::head_norm_backward(device_, a); }
    void compute(const RopeForward& a) override { CU_BACKEND::rope_forward(device_, a); }
    void compute(const RopeBackward& a) override { CU_BACKEND::rope_backward(device_, a); }
    void compute(const SwigluForward& a) override { CU_BACKEND::swiglu_forward(device_, a); }
    void compute(const SwigluBackward& a) override { CU_BACKEND::swiglu_backward(device_, a); }
    void compute(const CrossEntropy& a) override { CU_BACKEND::cross_entropy(device_, a); }
    void compute(const Sum& a) override { CU_BACKEND::sum(device_, a); }

    void compute(const AttentionForward& a) override { CU_BACKEND::attention_forward(device_, a); }
    void compute(const AttentionBackward& a) override { CU_BACKEND::attention_backward(device_, a); }

    void compute(const InitializeScales& a) override { CU_BACKEND::initialize_scales(device_, tables_, a); }
    void compute(const Quantize& a) override { CU_BACKEND::quantize(device_, tables_, a); }
    void compute(const SteBackwardAndNorm& a) override {
        CU_BACKEND::ste_backward_and_norm(device_, tables_, a);
    }
    void compute(const AdamwAndQuantize& a) override { CU_BACKEND::adamw_and_quantize(device_, tables_, a); }
    void compute(const WriteWeightMessages& a) override {
        CU_BACKEND::write_weight_messages(device_, tables_, a);
    }
    void compute(const ReadWeightMessages& a) override { CU_BACKEND::read_weight_messages(device_, a); }

    void compute(const PackedMatmulForward& a) override { CU_BACKEND::packed_matmul_forward(device_, a); }
    void compute(const PackedEmbeddingForward& a) override {
        CU_BACKEND::packed_embedding_forward(device_, a);
    }
    void compute(const CachedAttentionForward& a) override {
        CU_BACKEND::cached_attention_forward(device_, a);
    }

    std::vector<WeightMessage> place_weight_messages(std::span<const ParameterRows> parameters,
                                                     void* buffer) override {
        return CU_BACKEND::place_weight_messages(tables_, parameters, buffer);
    }
    void replay_recorded(const ReplayKey& key, const std::function<void()>& work) override {
        device_.replay(key, work);
    }

  private:
    // What rooms keep from call to call uses the device to its end.
    Device device_;
    std::unique_ptr<DenseMatmul> dense_;
    WeightTables tables_;
};

}  // namespace train_qat::CU_BACKEND
