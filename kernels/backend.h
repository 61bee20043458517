// The contract of all operations: what a device must be able to do so that a model can be trained on it.
// Every operation is documented here once - mathematics, shapes, dtypes, errors - and implemented once per
// backend, under the same name: kernels/cpu/ (plain C++, also the readable reference) and kernels/cuda/.
//
// Conventions
//  * Letters: B sequences, T positions, M = B*T rows of activations, C width, H query heads, G key/value
//  heads, D head
//    dimension, F feed-forward width, V vocabulary, N x K a weight matrix (outputs x inputs).
//  * "compute type" is the dtype of activations and matmul operands: bfloat16, or float32 for reference runs.
//  Master
//    weights, moments, gradients of parameters, the residual stream and all reductions are float32.
//  * Operations are enqueued in order on the backend's one stream and may return before they are done; only
//    copy_to_host and synchronize wait. Scalars that come out of the device (losses, norms) are therefore
//    tensors.
//  * Results do not depend on the number of threads or blocks: every reduction has a fixed order.
//  * Dimensions may be any positive number, also one, also no multiple of anything.
//  * A view with the wrong dtype or shape is a bug of the caller: std::logic_error naming the operation.
//  * `accumulate` false overwrites the output, true adds to it.
//
// Quantized matmuls. A weight matrix takes part in matmuls as a ComputeWeight: its levels q (see grid.h) and
// one scale per row, w = s[n] * q[n,k]. The levels are exact in the compute type, and the scale leaves the
// sum, so matmuls are plain:
//     z[m,n] = sum_k x[m,k] q[n,k]          the linear layer's output is y = s ∘ z
//     dx[m,k] = sum_n dz[m,n] q[n,k]        with dz = s ∘ dy
//     dq[n,k] = sum_m dz[m,n] x[m,k]        and dŵ = dq / s
// Whoever reads the output of a linear layer, and whoever produces its gradient, multiplies by the layer's
// row_scale on the way (arguments named `column_scale`; empty means one): both pass over these numbers
// anyway. The division by s happens once per optimizer step in ste_backward_and_norm. With several scales per
// row (groups) the scale cannot leave the sum: q then holds s*level rounded to the compute type, row_scale is
// empty, and dq is dŵ itself.
#pragma once

#include <compare>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/grid.h"
#include "kernels/tensor.h"

namespace train_qat {

// A weight matrix as matmuls read it. `storage` has the backend's own layout and size (compute_weight_bytes).
struct ComputeWeight {
    int64_t rows = 0;     // N, outputs
    int64_t columns = 0;  // K, inputs
    DType dtype = DType::bfloat16;
    bool embedding = false;  // rows are also looked up one by one (embedding_forward)
    void* storage = nullptr;
    float* scale_storage = nullptr;  // (N)
    bool scaled = false;             // false: row_scale() is empty
    // Set by quantize(), for backends that keep quantized weights packed: the grid whose codes
    // (kernels/codes.h) `storage` holds, or none: numbers of the compute type. code_group: columns per scale.
    Grid codes = Grid::none;
    int64_t code_group = 0;

    Tensor row_scale() const { return scaled ? Tensor(scale_storage, DType::float32, {rows}) : Tensor(); }
};

// One parameter tensor and its optimizer state: `rows` x `columns`, float32, row-major. A vector is one row
// without quantization. Matrices that share one ComputeWeight (query, key, value) stand in it one below the
// other, each from `first_row` on.
struct ParameterRows {
    int64_t rows = 0;
    int64_t columns = 0;
    float* master = nullptr;  // (rows, columns), or null:
    // (rows, columns), in place of `master`: weights that the optimizer rounds stochastically to bfloat16.
    bfloat16* narrow_master = nullptr;
    float* gradient = nullptr;       // (rows, columns)
    float* first_moment = nullptr;   // (rows, columns)
    float* second_moment = nullptr;  // (rows, columns)
    bool decay = true;               // weight decay applies

    Grid grid = Grid::none;
    int64_t group = 0;                     // columns per scale; divides `columns`
    float* scale = nullptr;                // (rows, columns / group)
    float* scale_gradient = nullptr;       // (rows, columns / group)
    float* scale_first_moment = nullptr;   // (rows, columns / group)
    float* scale_second_moment = nullptr;  // (rows, columns / group)
    float scale_gradient_factor = 1.0f;    // LSQ's g = 1 / sqrt(n * Q_p)

    ComputeWeight* compute = nullptr;  // null for tensors that no matmul reads (norm weights)
    int64_t first_row = 0;

    // The place of these weights in their model, for chances that must not depend on how the model is
    // divided: the parameter's number, and how many of its elements come before these rows.
    uint32_t number = 0;
    int64_t first_element = 0;

    int64_t elements() const { return rows * columns; }
    int64_t scales() const { return grid == Grid::none ? 0 : rows * (columns / group); }
};

// Rows [first, first + count) of a parameter, as a parameter of their own.
ParameterRows rows_of(const ParameterRows& whole, int64_t first, int64_t count);

// What other processes need of a parameter to multiply with it: for every row its levels as packed codes
// (kernels/codes.h) and its effective scales or, without a grid, its weights in the compute type. Both arrays
// are whole rows one after another, so that ranks exchange rows (kernels/ranks/communicator.h).
struct WeightMessage {
    void* numbers = nullptr;  // (rows, row_bytes)
    int64_t row_bytes = 0;
    float* scales = nullptr;  // (rows, scales_per_row), or null
    int64_t scales_per_row = 0;
};

// One step of AdamW with decoupled weight decay (arXiv 1711.05101). The moments' bias corrections are 1 -
// beta^t for the t of the weights and of the scales: scales start at the switch and are younger.
//     weights   w <- w - learning_rate (u + weight_decay w)        u: AdamW's direction, about one in size
//     scales    s <- max(smallest_scale, s (1 - scale_learning_rate u))
// A scale moves by a fraction of itself: scales differ in size by orders of magnitude between bit widths, and
// an absolute step of the weights' learning rate would be larger than an 8-bit scale.
struct AdamWStep {
    float learning_rate = 0;
    float scale_learning_rate = 0;
    float beta1 = 0.9f;
    float beta2 = 0.95f;
    float epsilon = 1e-8f;
    float weight_decay = 0;
    int64_t step = 1;        // t >= 1
    int64_t scale_step = 1;  // t >= 1 since the scales exist
    float clip_norm = 0;     // gradients are multiplied by min(1, clip_norm / norm); 0: no clipping
};

struct AttentionShape {
    int64_t batch = 0, sequence = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t rows() const { return batch * sequence; }
    int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Names a sequence of operations, see Backend::replay.
struct ReplayKey {
    const void* owner;  // whose operations and memory they are
    int64_t micro_batches;
    bool quantized, accumulate;
    bool communicates = false;  // with other ranks
    auto operator<=>(const ReplayKey&) const = default;
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

    // Whether the host can read and write the memory by its addresses.
    virtual bool host_addressable() const = 0;

    // Zero-filled device memory, 64-byte aligned or better. Throws std::runtime_error when there is not
    // enough.
    virtual void* allocate(int64_t bytes) = 0;
    virtual void release(void* memory) = 0;
    virtual void copy_to_device(void* device, const void* host, int64_t bytes) = 0;
    virtual void copy_to_host(void* host, const void* device, int64_t bytes) = 0;  // waits
    virtual void fill_zero(void* device, int64_t bytes) = 0;
    virtual void synchronize() = 0;

    // Runs `work`, a sequence of operations that is the same, pointers and all, whenever `key` and the forms
    // of the weights are: a backend may record it and from then on replay the record. Not copy_to_*,
    // allocate, release or synchronize inside.
    virtual void replay(const ReplayKey&, const std::function<void()>& work) { work(); }

    // ---- weights

    // Bytes of ComputeWeight::storage for a matrix of this size.
    virtual int64_t compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                         bool embedding) const = 0;

    // Initial scales: statistic(w of the group) / divisor of the grid, at least smallest_scale. Tensors
    // without a grid are passed over.
    virtual void initialize_scales(std::span<const ParameterRows> parameters) = 0;

    // Writes each parameter's levels and scales (grid none: the weights, rounded to the compute type) into
    // its ComputeWeight.
    virtual void quantize(std::span<const ParameterRows> parameters) = 0;

    // The straight-through backward pass, once per optimizer step. In: gradient = dq (see above). Out, in
    // place,
    //     dŵ = dq / s                     (one scale per row; otherwise dŵ = dq)
    //     gradient       = inside(w/s) ? dŵ : 0
    //     scale_gradient = g * sum over the group of dŵ * scale_gradient(w/s)
    // and squares[i] = sum of the squares of both, for parameters[i]. Tensors without a grid: squares only.
    // squares: (number of parameters) float32. Sums are formed in double, in fixed order.
    virtual void ste_backward_and_norm(std::span<const ParameterRows> parameters, const Tensor& squares) = 0;

    // AdamW on every weight and scale, with the gradients times min(1, clip_norm / sqrt(sum of squares)),
    // then quantize(). Scales keep >= smallest_scale and have no decay. squares: (any number) float32, of all
    // parameters that the norm spans, also where `parameters` is a part of them.
    virtual void adamw_and_quantize(std::span<const ParameterRows> parameters, const AdamWStep& step,
                                    const Tensor& squares) = 0;

    // ---- weights among ranks

    // Bytes of `buffer` that weight_messages may use for a parameter of this form, a multiple of 256.
    virtual int64_t weight_message_bytes(const ParameterRows& parameter) const = 0;

    // Where the messages of whole parameters are: in their ComputeWeights where these have a message's form
    // anyway, else in `buffer`. Masters and scales of `parameters` are not read and may be null.
    virtual std::vector<WeightMessage> weight_messages(std::span<const ParameterRows> parameters,
                                                       void* buffer) = 0;

    // After quantize() or adamw_and_quantize() of `rows`: writes them into the messages of their parameters.
    // rows[i] is a part of the parameter of messages[i]. A NaN weight makes its group's scale NaN.
    virtual void write_weight_messages(std::span<const ParameterRows> rows,
                                       std::span<const WeightMessage> messages) = 0;

    // Makes the ComputeWeights of whole parameters what quantize() would have made of all their rows.
    virtual void read_weight_messages(std::span<const ParameterRows> parameters,
                                      std::span<const WeightMessage> messages) = 0;

    // ---- matmuls

    // z = x qᵀ. x: (M, K) compute type; z: (M, N) compute type or float32.
    virtual void matmul_forward(const Tensor& z, const Tensor& x, const ComputeWeight& weight) = 0;

    // dx = dz q. dz: (M, N) compute type, already multiplied by row_scale; dx: (M, K) compute type.
    virtual void matmul_input_gradient(const Tensor& dx, const Tensor& dz, const ComputeWeight& weight) = 0;

    // dq (+)= dzᵀ x. dz: (M, N), x: (M, K) compute type; dq: (N, K) float32.
    virtual void matmul_weight_gradient(const Tensor& dq, const Tensor& dz, const Tensor& x,
                                        bool accumulate) = 0;

    // ---- embedding

    // y[m,:] = s[token] * q[token,:]. tokens: (M) int32, each in [0, V): the caller has checked; y: (M, C)
    // float32.
    virtual void embedding_forward(const Tensor& y, const Tensor& tokens, const ComputeWeight& weight) = 0;

    // dq[token,:] += s[token] * dy[m,:], in the order of m. dy: (M, C) float32; dq: (V, C) float32;
    // row_scale: (V) or empty.
    virtual void embedding_backward(const Tensor& dq, const Tensor& dy, const Tensor& tokens,
                                    const Tensor& row_scale) = 0;

    // ---- normalization

    // RMSNorm (arXiv 1910.07467) of the residual stream, with the addition before it:
    //     r = residual_in + column_scale ∘ branch;   rstd = 1 / sqrt(mean(r²) + epsilon);   y = r * rstd *
    //     weight
    // residual_in, residual_out: (M, C) float32, may be the same memory; branch: (M, C) compute type, or
    // empty: then r = residual_in and residual_out is not written (pass it empty). column_scale: (C) or
    // empty. y: (M, C) compute type; weight: (C) float32; rstd: (M) float32.
    virtual void residual_rmsnorm_forward(const Tensor& residual_out, const Tensor& y, const Tensor& rstd,
                                          const Tensor& residual_in, const Tensor& branch,
                                          const Tensor& column_scale, const Tensor& weight,
                                          float epsilon) = 0;

    // With n = r * rstd and h = dy ∘ weight:  dr = rstd * (h - n * mean(h ∘ n)),  dweight = sum_m dy ∘ n.
    //     d_residual (+)= dr          (accumulate_residual)
    //     dweight    (+)= ...         (accumulate_weight)
    //     dz = column_scale ∘ d_residual, in the compute type: the gradient that the linear layer before this
    //     point of
    //          the residual stream wants. Empty: not wanted.
    // d_residual, residual: (M, C) float32; dz, dy: (M, C) compute type; dweight, weight: (C) float32; rstd:
    // (M); column_scale: (C) or empty. workspace: rmsnorm_backward_workspace(M, C) bytes.
    virtual void rmsnorm_backward(const Tensor& d_residual, const Tensor& dweight, const Tensor& dz,
                                  const Tensor& dy, const Tensor& residual, const Tensor& rstd,
                                  const Tensor& weight, const Tensor& column_scale, bool accumulate_residual,
                                  bool accumulate_weight, void* workspace) = 0;
    virtual int64_t rmsnorm_backward_workspace(int64_t rows, int64_t columns) const = 0;

    // ---- attention

    // Rotary position embedding (arXiv 2104.09864), half-split: of each head's D numbers, i and i + D/2 turn
    // by the angle t * theta^(-2i/D). In place on qkv: (B*T, (H + 2G) * D) compute type, columns [queries |
    // keys | values]: all columns times column_scale ((H + 2G) * D, or empty), then queries and keys turned.
    // cosines, sines: (T, D/2) float32 or longer in T.
    virtual void rope_forward(const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                              const Tensor& column_scale, const AttentionShape& shape) = 0;

    // The gradient's queries and keys turned back, then all columns times column_scale.
    virtual void rope_backward(const Tensor& dqkv, const Tensor& cosines, const Tensor& sines,
                               const Tensor& column_scale, const AttentionShape& shape) = 0;

    // Causal attention, query head h reading key/value head h / (H/G):
    //     a[t] = sum_{u <= t} softmax_u(q[t]·k[u] / sqrt(D)) v[u]
    // never holding more than a tile of the T x T weights (arXiv 2205.14135). qkv as above; y: (B*T, H*D)
    // compute type; log_sum_exp: (B, H, T) float32, the softmax's logarithmic denominators, for the backward
    // pass.
    virtual void attention_forward(const Tensor& y, const Tensor& log_sum_exp, const Tensor& qkv,
                                   const AttentionShape& shape) = 0;

    // dqkv: like qkv, with respect to the rotated queries and keys. dy, y: (B*T, H*D) compute type.
    // workspace: attention_backward_workspace(shape) bytes.
    virtual void attention_backward(const Tensor& dqkv, const Tensor& dy, const Tensor& qkv, const Tensor& y,
                                    const Tensor& log_sum_exp, const AttentionShape& shape,
                                    void* workspace) = 0;
    virtual int64_t attention_backward_workspace(const AttentionShape& shape) const = 0;

    // ---- feed-forward

    // SwiGLU (arXiv 2002.05202): y = silu(gate) * up, silu(x) = x / (1 + e^-x), with [gate | up] =
    // column_scale ∘ gate_up. gate_up: (M, 2F) compute type; y: (M, F) compute type; column_scale: (2F) or
    // empty.
    virtual void swiglu_forward(const Tensor& y, const Tensor& gate_up, const Tensor& column_scale) = 0;

    // d_gate_up = column_scale ∘ (gradient with respect to [gate | up]). d_gate_up: (M, 2F) compute type, may
    // be the memory of gate_up, which is as in the forward pass, not yet scaled; dy: (M, F) compute type.
    virtual void swiglu_backward(const Tensor& d_gate_up, const Tensor& dy, const Tensor& gate_up,
                                 const Tensor& column_scale) = 0;

    // ---- loss

    // Softmax cross entropy of a chunk of rows, with l = column_scale ∘ logits:
    //     losses[m] = log(sum_v e^l[m,v]) - l[m, target]
    // When d_logits is not empty: d_logits = column_scale ∘ (softmax(l) - onehot) * gradient_factor, compute
    // type. logits: (M, V) float32; losses: (M) float32; targets: (M) int32 in [0, V); column_scale: (V) or
    // empty.
    virtual void cross_entropy(const Tensor& losses, const Tensor& d_logits, const Tensor& logits,
                               const Tensor& targets, const Tensor& column_scale, float gradient_factor) = 0;

    // total[0] (+)= sum of values, formed in double. values: (n) float32; total: (1) float32.
    virtual void sum(const Tensor& total, const Tensor& values, bool accumulate) = 0;
};

// The CPU backend. threads = 0: as many as OpenMP offers.
std::unique_ptr<Backend> make_cpu_backend(int threads = 0);

// Memory of a backend, released at the end of its life.
class DeviceMemory {
  public:
    DeviceMemory() = default;
    DeviceMemory(Backend& backend, int64_t bytes)
        : backend_(&backend), data_(bytes > 0 ? backend.allocate(bytes) : nullptr), bytes_(bytes) {}
    ~DeviceMemory() { reset(); }
    DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
    DeviceMemory& operator=(DeviceMemory&& other) noexcept {
        swap(other);
        return *this;
    }
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    void reset() {
        if (data_ != nullptr) backend_->release(data_);
        data_ = nullptr;
    }
    void swap(DeviceMemory& other) noexcept {
        std::swap(backend_, other.backend_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    Backend* backend_ = nullptr;
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

}  // namespace train_qat
