// The CPU backend: one class, one source file per operation; plain C++ that the compiler vectorizes, and a few
// instructions for matmuls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/checks.h"
#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/platform/matmul_unit.h"

namespace train_qat {

class WorkerPool;

class CpuBackend : public Backend {
  public:
    // threads = 0: as many as OpenMP offers.
    CpuBackend(int threads, MatmulUnit unit);
    ~CpuBackend() override;

    std::string describe() const override;
    int64_t available_memory() const override;
    bool supports(DType compute_type) const override;
    double peak_flops(DType compute_type) override;
    std::string peak_source(DType) const override { return "measured"; }
    double read_bandwidth(int64_t bytes) override;
    bool host_addressable() const override { return true; }
    void* allocate(int64_t bytes) override;
    void release(void* memory) override;
    void copy_to_device(void* device, const void* host, int64_t bytes) override;
    void copy_to_host(void* host, const void* device, int64_t bytes) override;
    void fill_zero(void* device, int64_t bytes) override;
    void synchronize() override {}

    int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                 bool embedding) const override;
    int64_t preferred_logit_rows(int64_t rows, int64_t vocabulary, DType logits) const override;
    int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const override;
    int64_t bias_backward_workspace(int64_t rows, int64_t columns) const override;
    int64_t head_norm_backward_workspace(const AttentionShape& shape) const override;
    int64_t attention_backward_workspace(const AttentionShape& shape) const override;
    int64_t weight_message_bytes(const ParameterRows& parameter) const override;

  protected:
    void compute(const MatmulForward& args) override;
    void compute(const MatmulInputGradient& args) override;
    void compute(const MatmulWeightGradient& args) override;
    void compute(const BiasForward& args) override;
    void compute(const BiasBackward& args) override;
    void compute(const EmbeddingForward& args) override;
    void compute(const EmbeddingBackward& args) override;
    void compute(const ResidualRmsnormForward& args) override;
    void compute(const RmsnormBackward& args) override;
    void compute(const HeadNormForward& args) override;
    void compute(const HeadNormBackward& args) override;
    void compute(const RopeForward& args) override;
    void compute(const RopeBackward& args) override;
    void compute(const AttentionForward& args) override;
    void compute(const AttentionBackward& args) override;
    void compute(const SwigluForward& args) override;
    void compute(const SwigluBackward& args) override;
    void compute(const CrossEntropy& args) override;
    void compute(const Sum& args) override;
    void compute(const InitializeScales& args) override;
    void compute(const Quantize& args) override;
    void compute(const SteBackwardAndNorm& args) override;
    void compute(const AdamwAndQuantize& args) override;
    void compute(const WriteWeightMessages& args) override;
    void compute(const ReadWeightMessages& args) override;
    void compute(const PackedMatmulForward& args) override;
    void compute(const PackedEmbeddingForward& args) override;
    void compute(const CachedAttentionForward& args) override;
    std::vector<WeightMessage> place_weight_messages(std::span<const ParameterRows> parameters,
                                                     void* buffer) override;

  private:
    // Calls function(first, last) for consecutive blocks of [0, count), each block once, on all threads.
    // Blocks are handed out as threads become free: on a shared machine a late thread does not hold up the
    // others.
    template <typename Function>
    void parallel_for(int64_t count, int64_t block, Function&& function) const {
        const int64_t blocks = (count + block - 1) / block;
        if (blocks <= 1 || threads_ == 1) {
            for (int64_t i = 0; i < blocks; ++i) function(i * block, std::min(count, (i + 1) * block));
            return;
        }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
        for (int64_t i = 0; i < blocks; ++i) function(i * block, std::min(count, (i + 1) * block));
    }

    // out (+)= the sum of `count` rows of partial sums (count, columns), in double and in order.
    void sum_partials(float* out, const float* partials, int64_t count, int64_t columns,
                      bool accumulate) const;

    // Runs update(parameter, first_row, last_row) over all parameters in blocks of rows, then writes the
    // rows' levels and scales to where matmuls and look-ups read them; one parallel loop for everything.
    template <typename Update>
    void update_and_quantize(std::span<const ParameterRows> parameters, Update&& update);
    template <typename MakeRow>
    void write_levels(std::span<const ParameterRows> parameters, MakeRow&& make_row);

    // For work of some microseconds, whose functions use no thread_scratch.
    WorkerPool& workers();

    // At least `count` floats that belong to the calling thread of a parallel_for; kept between calls.
    float* thread_scratch(int64_t count);

    // Calls function.operator()<Unit>() with the unit (products/units.h) that multiplies matrices of T.
    template <typename T, typename Function>
    void with_matmul_unit(Function&& function) const;
    template <typename T, typename Out>
    void multiply_packed(Out* out, const T* x, const void* panels, int64_t rows, int64_t inner,
                         int64_t columns);
    template <typename Unit, typename T>
    void add_weight_gradient(float* dq, const T* dz, const T* x, int64_t rows, int64_t dz_columns,
                             int64_t x_columns, bool accumulate);
    int threads_;
    MatmulUnit matmul_unit_;
    AlignedMemory matmul_memory_;                // operands of a matmul that all threads lay out
    std::unique_ptr<WorkerPool> workers_;        // made where it is first used
    std::vector<AlignedMemory> thread_scratch_;  // of each thread
    double peak_float32_ = 0;
    double peak_bfloat16_ = 0;
};

// Rows per block of elementwise work: about 64 KiB of float32, so that a block lives in a core's private
// cache.
inline int64_t rows_per_block(int64_t columns) {
    return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

// Rows whose contributions to the gradient of a weight or a bias are summed together, in float32, before
// CpuBackend::sum_partials; fixed, so that the result does not depend on threads.
constexpr int64_t rows_per_partial_sum = 32;
inline int64_t partial_sums_of(int64_t rows) {
    return (rows + rows_per_partial_sum - 1) / rows_per_partial_sum;
}

}  // namespace train_qat
