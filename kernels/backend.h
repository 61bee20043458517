// A device on which a model is trained: memory, and the operations of kernels/operations.h. Public functions are the
// contract that callers see: each checks its arguments, in one place for all backends, and then calls the backend's
// own `compute`. Operations are enqueued in order on the backend's one stream and may return before they are done;
// only copy_to_host and synchronize wait. Scalars that come out of the device (losses, norms) are therefore tensors.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/operations.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace train_qat {

// Names a sequence of operations, see Backend::replay.
struct ReplayKey {
    const void* owner;  // whose operations and memory they are
    int64_t micro_batches;
    bool quantized, accumulate;
    bool communicates = false;  // with other ranks
    auto operator<=>(const ReplayKey&) const = default;
};

// Is told of every operation, for profiles. `compute` runs it and waits.
class OperationObserver {
  public:
    virtual ~OperationObserver() = default;
    virtual void observe(const char* operation, const OperationCost& cost,
                         const std::function<void()>& compute) = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;
    Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    // ---- device and memory

    virtual std::string describe() const = 0;             // one line: device, threads, instruction set
    virtual int64_t available_memory() const = 0;         // bytes that an allocation can still get
    virtual bool supports(DType compute_type) const = 0;  // whether matmuls in this type are worth using
    // Attainable FLOP/s of matmuls in `compute_type`: measured once or the card's data sheet. For MFU.
    virtual double peak_flops(DType compute_type) = 0;
    // Where that number is from, for people: "measured", "data sheet", ...
    virtual std::string peak_source(DType compute_type) const = 0;
    // Measured bytes/s of reading a block of `bytes` bytes again and again, caches included: what bounds generation.
    virtual double read_bandwidth(int64_t bytes) = 0;

    // Whether the host can read and write the memory by its addresses.
    virtual bool host_addressable() const = 0;

    // Zero-filled device memory, 64-byte aligned or better. std::runtime_error when there is not enough.
    virtual void* allocate(int64_t bytes) = 0;
    virtual void release(void* memory) = 0;
    virtual void copy_to_device(void* device, const void* host, int64_t bytes) = 0;
    virtual void copy_to_host(void* host, const void* device, int64_t bytes) = 0;  // waits
    virtual void fill_zero(void* device, int64_t bytes) = 0;
    virtual void synchronize() = 0;

    // Runs `work`, a sequence of operations that is the same, pointers and all, whenever `key` and the forms of the
    // weights are: a backend may record it and from then on replay the record. Not copy_to_*, allocate, release or
    // synchronize inside. Observed backends run it every time.
    void replay(const ReplayKey& key, const std::function<void()>& work);

    // Null: nobody. The observer outlives its use.
    void set_observer(OperationObserver* observer) { observer_ = observer; }

    // ---- sizes

    // Bytes of ComputeWeight::storage for a matrix of this size.
    virtual int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                         bool embedding) const = 0;
    // How many of `rows` rows of logits, (rows, vocabulary) of this dtype, are best computed at a time: from 1 to `rows`.
    // Each chunk reads and writes the weight gradient of the output head once, and needs memory. Sums over chunks differ
    // in their last places, so the answer follows from the device and the sizes alone, not from what memory is free.
    virtual int64_t preferred_logit_rows(int64_t rows, int64_t vocabulary, DType logits) const = 0;
    virtual int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const = 0;
    virtual int64_t bias_backward_workspace(int64_t rows, int64_t columns) const = 0;
    virtual int64_t head_norm_backward_workspace(const AttentionShape& shape) const = 0;
    virtual int64_t attention_backward_workspace(const AttentionShape& shape) const = 0;
    // Whether attention's backward pass needs y_remainder, which the forward pass then writes; otherwise neither takes it.
    virtual bool wants_attention_remainder() const { return false; }

    // Bytes of `buffer` that weight_messages may use for a parameter of this form, a multiple of 256.
    virtual int64_t weight_message_bytes(const ParameterRows& parameter) const = 0;
    // Where the messages of whole parameters are: in their ComputeWeights where these have a message's form anyway,
    // else in `buffer`. Masters and scales of `parameters` are not read and may be null.
    std::vector<WeightMessage> weight_messages(std::span<const ParameterRows> parameters, void* buffer);

    // ---- operations: kernels/operations.h

    void matmul_forward(const MatmulForward& arguments) { run(arguments); }
    void matmul_input_gradient(const MatmulInputGradient& arguments) { run(arguments); }
    void matmul_weight_gradient(const MatmulWeightGradient& arguments) { run(arguments); }
    void bias_forward(const BiasForward& arguments) { run(arguments); }
    void bias_backward(const BiasBackward& arguments) { run(arguments); }
    void embedding_forward(const EmbeddingForward& arguments) { run(arguments); }
    void embedding_backward(const EmbeddingBackward& arguments) { run(arguments); }
    void residual_rmsnorm_forward(const ResidualRmsnormForward& arguments) { run(arguments); }
    void rmsnorm_backward(const RmsnormBackward& arguments) { run(arguments); }
    void head_norm_forward(const HeadNormForward& arguments) { run(arguments); }
    void head_norm_backward(const HeadNormBackward& arguments) { run(arguments); }
    void rope_forward(const RopeForward& arguments) { run(arguments); }
    void rope_backward(const RopeBackward& arguments) { run(arguments); }
    void attention_forward(const AttentionForward& arguments) {
        check_remainder(arguments.name, arguments.y_remainder, false);
        run(arguments);
    }
    void attention_backward(const AttentionBackward& arguments) {
        check_remainder(arguments.name, arguments.y_remainder, true);
        run(arguments);
    }
    // An observer is told of both parts, or of the whole where the backend computes it in one pass.
    void matmul_rope_forward(const MatmulRopeForward& arguments) { run_whole(arguments); }
    void matmul_swiglu_forward(const MatmulSwigluForward& arguments) { run_whole(arguments); }
    void swiglu_forward(const SwigluForward& arguments) { run(arguments); }
    void swiglu_backward(const SwigluBackward& arguments) { run(arguments); }
    void cross_entropy(const CrossEntropy& arguments) { run(arguments); }
    void sum(const Sum& arguments) { run(arguments); }

    void initialize_scales(const InitializeScales& arguments) { run(arguments); }
    void quantize(const Quantize& arguments) { run(arguments); }
    void ste_backward_and_norm(const SteBackwardAndNorm& arguments) { run(arguments); }
    void adamw_and_quantize(const AdamwAndQuantize& arguments) { run(arguments); }
    void write_weight_messages(const WriteWeightMessages& arguments) { run(arguments); }
    void read_weight_messages(const ReadWeightMessages& arguments) { run(arguments); }

    void packed_matmul_forward(const PackedMatmulForward& arguments) { run(arguments); }
    void packed_embedding_forward(const PackedEmbeddingForward& arguments) { run(arguments); }
    void cached_attention_forward(const CachedAttentionForward& arguments) { run(arguments); }

  protected:
    // What a backend implements. Arguments have been checked.
    virtual void compute(const MatmulForward&) = 0;
    virtual void compute(const MatmulInputGradient&) = 0;
    virtual void compute(const MatmulWeightGradient&) = 0;
    virtual void compute(const BiasForward&) = 0;
    virtual void compute(const BiasBackward&) = 0;
    virtual void compute(const EmbeddingForward&) = 0;
    virtual void compute(const EmbeddingBackward&) = 0;
    virtual void compute(const ResidualRmsnormForward&) = 0;
    virtual void compute(const RmsnormBackward&) = 0;
    virtual void compute(const HeadNormForward&) = 0;
    virtual void compute(const HeadNormBackward&) = 0;
    virtual void compute(const RopeForward&) = 0;
    virtual void compute(const RopeBackward&) = 0;
    virtual void compute(const AttentionForward&) = 0;
    virtual void compute(const AttentionBackward&) = 0;
    virtual void compute(const SwigluForward&) = 0;
    virtual void compute(const SwigluBackward&) = 0;
    virtual void compute(const CrossEntropy&) = 0;
    virtual void compute(const Sum&) = 0;
    virtual void compute(const InitializeScales&) = 0;
    virtual void compute(const Quantize&) = 0;
    virtual void compute(const SteBackwardAndNorm&) = 0;
    virtual void compute(const AdamwAndQuantize&) = 0;
    virtual void compute(const WriteWeightMessages&) = 0;
    virtual void compute(const ReadWeightMessages&) = 0;
    virtual void compute(const PackedMatmulForward&) = 0;
    virtual void compute(const PackedEmbeddingForward&) = 0;
    virtual void compute(const CachedAttentionForward&) = 0;

    // By default one part after the other. A backend that has a kernel for both calls it in observed().
    virtual void compute(const MatmulRopeForward& a) {
        matmul_forward(a.matmul);
        rope_forward(a.rope);
    }
    virtual void compute(const MatmulSwigluForward& a) {
        matmul_forward(a.matmul);
        swiglu_forward(a.swiglu);
    }
    // work(), which computes `arguments`, before the eyes of the observer if there is one.
    template <typename Arguments, typename Work>
    void observed(const Arguments& arguments, Work&& work) {
        if (observer_ == nullptr) return work();
        observer_->observe(Arguments::name, arguments.cost(), [&] {
            work();
            synchronize();
        });
    }

    virtual std::vector<WeightMessage> place_weight_messages(std::span<const ParameterRows> parameters,
                                                             void* buffer) = 0;
    virtual void replay_recorded(const ReplayKey&, const std::function<void()>& work) { work(); }

  private:
    void check_remainder(const char* operation, const Tensor& y_remainder, bool needed) const;

    template <typename Arguments>
    void run(const Arguments& arguments) {
        arguments.check();
        observed(arguments, [&] { compute(arguments); });
    }
    template <typename Arguments>
    void run_whole(const Arguments& arguments) {
        arguments.check();
        compute(arguments);
    }

    OperationObserver* observer_ = nullptr;
};

// The CPU backend. threads = 0: as many as OpenMP offers.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

}  // namespace train_qat
