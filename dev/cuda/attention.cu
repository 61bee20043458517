// Causal attention with grouped key/value heads (kernels/operations.h):
//     y[t] = sum_{u <= t} softmax_u(q[t]·k[u] / sqrt(D)) v[u]
//
//   forward
//     1 scores in memory       (B, H, T, T) float32: written, normalized, read; three kernels
//     2 a warp per query       online softmax over 32 keys at a time: no scores in memory
//     3 attention_forward.cu   queries share each key and value in tiles, products on tensor cores
//   backward
//     4 attention_backward.cu
//
// Of matmuls the forward pass has two, the backward pass five, over the T²/2 pairs of each head; the limit
// is the tensor cores'.
#include <cmath>

#include "dev/cuda/attention_problem.h"

namespace train_qat::CU_BACKEND {

namespace {

// One query head, as a kernel finds it in qkv (B*T, (H + 2G) D).
struct Layout {
    int sequence, heads, kv_heads, head_dim;
    float scale;  // 1 / sqrt(D)

    CU_DEVICE int pitch() const { return (heads + 2 * kv_heads) * head_dim; }
    CU_DEVICE int64_t row(int64_t sequence_index, int t) const { return sequence_index * sequence + t; }
    CU_DEVICE int query_column(int h) const { return h * head_dim; }
    CU_DEVICE int key_column(int h) const { return (heads + h / (heads / kv_heads)) * head_dim; }
    CU_DEVICE int value_column(int h) const { return key_column(h) + kv_heads * head_dim; }
};

// ---- 1: scores in memory

// scores[b,h,t,u] = q[t]·k[u] / sqrt(D) for u <= t. A thread a score; blockIdx.y: t, blockIdx.z: (b, h).
__global__ void score_kernel(float* scores, const bfloat16* qkv, Layout l) {
    const int u = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), t = static_cast<int>(blockIdx.y);
    if (u > t) return;
    const int64_t sequence = blockIdx.z / static_cast<unsigned>(l.heads);
    const int h = static_cast<int>(blockIdx.z % static_cast<unsigned>(l.heads));
    const bfloat16* q = qkv + l.row(sequence, t) * l.pitch() + l.query_column(h);
    const bfloat16* k = qkv + l.row(sequence, u) * l.pitch() + l.key_column(h);
    float dot = 0;
    for (int d = 0; d < l.head_dim; ++d)
        dot += static_cast<float>(load(q + d)) * static_cast<float>(load(k + d));
    store(scores + (int64_t{blockIdx.z} * l.sequence + t) * l.sequence + u, dot * l.scale);
}

// A warp a row of scores, in place. blockIdx.y: (b, h).
__global__ void softmax_kernel(float* scores, float* log_sum_exp, Layout l) {
    const int t = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
    if (t >= l.sequence) return;
    const int64_t index = int64_t{blockIdx.y} * l.sequence + t;
    float* row = scores + index * l.sequence;
    float largest = -HUGE_VALF, sum = 0;
    for (int u = lane_index(); u <= t; u += 32) largest = fmaxf(largest, load(row + u));
    largest = warp_max(largest);
    for (int u = lane_index(); u <= t; u += 32) sum += expf(load(row + u) - largest);
    sum = warp_sum(sum);
    for (int u = lane_index(); u <= t; u += 32) store(row + u, expf(load(row + u) - largest) / sum);
    if (lane_index() == 0) store(log_sum_exp + index, largest + logf(sum));
}

// y[t,h,:] = sum_u weights[u] v[u,:]. A thread a number of y, (B*T, H*D).
__global__ void weighted_value_kernel(bfloat16* y, const float* weights, const bfloat16* qkv, int64_t count,
                                      Layout l) {
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const int width = l.heads * l.head_dim;
    const int64_t row = index / width, sequence = row / l.sequence;
    const int column = static_cast<int>(index % width), t = static_cast<int>(row % l.sequence);
    const int h = column / l.head_dim, d = column % l.head_dim;
    const float* weight = weights + ((sequence * l.heads + h) * l.sequence + t) * l.sequence;
    const bfloat16* v = qkv + l.row(sequence, 0) * l.pitch() + l.value_column(h) + d;
    float sum = 0;
    for (int u = 0; u <= t; ++u)
        sum += load(weight + u) * static_cast<float>(load(v + int64_t{u} * l.pitch()));
    store(y + index, static_cast<bfloat16>(sum));
}

// ---- 2: a warp per query

constexpr int query_warps = 4;  // of a block
constexpr int most_head_dim = 256, most_per_lane = most_head_dim / 32;

// The score of this lane's key, of which the warp has 32 at a time; the query lies in shared memory.
CU_DEVICE float score_of(const float* query, const bfloat16* k, int head_dim, float scale) {
    float dot = 0;
    for (int d = 0; d < head_dim; ++d) dot += load_shared(query + d) * static_cast<float>(load(k + d));
    return dot * scale;
}

// blockIdx.y: h, blockIdx.z: b. Lanes are keys while scores are formed and columns d of the head while values
// are summed.
__global__ void __launch_bounds__(query_warps * 32)
    warp_per_query(bfloat16* y, float* log_sum_exp, const bfloat16* qkv, Layout l) {
    CU_SHARED(queries, float[query_warps][most_head_dim]);
    const int t = static_cast<int>(blockIdx.x) * query_warps + warp_index(), h = static_cast<int>(blockIdx.y);
    if (t >= l.sequence) return;
    const int64_t sequence = blockIdx.z;
    const int lane = lane_index();
    float* query = &queries[warp_index()][0];
    for (int d = lane; d < l.head_dim; d += 32)
        store_shared(query + d,
                     static_cast<float>(load(qkv + l.row(sequence, t) * l.pitch() + l.query_column(h) + d)));
    warp_sync();
    float sums[most_per_lane] = {}, largest = -HUGE_VALF, sum = 0;
    for (int first = 0; first <= t; first += 32) {
        const int keys = t + 1 - first < 32 ? t + 1 - first : 32;
        const bfloat16* rows = qkv + l.row(sequence, first) * l.pitch();
        float score = -HUGE_VALF;
        if (lane < keys)
            score = score_of(query, rows + int64_t{lane} * l.pitch() + l.key_column(h), l.head_dim, l.scale);
        const float highest = fmaxf(largest, warp_max(score));
        const float shrink = expf(largest - highest), weight = expf(score - highest);
        largest = highest;
        sum = sum * shrink + warp_sum(weight);
        CU_UNROLL
        for (int i = 0; i < most_per_lane; ++i) sums[i] *= shrink;
        for (int u = 0; u < keys; ++u) {
            const float of_key = shuffle(weight, u);
            const bfloat16* v = rows + int64_t{u} * l.pitch() + l.value_column(h);
            CU_UNROLL
            for (int i = 0; i < most_per_lane; ++i)
                if (32 * i + lane < l.head_dim)
                    sums[i] += of_key * static_cast<float>(load(v + 32 * i + lane));
        }
    }
    CU_UNROLL
    for (int i = 0; i < most_per_lane; ++i)
        if (32 * i + lane < l.head_dim)
            store(y + l.row(sequence, t) * (l.heads * l.head_dim) + l.query_column(h) + 32 * i + lane,
                  static_cast<bfloat16>(sums[i] / sum));
    if (lane == 0) store(log_sum_exp + (sequence * l.heads + h) * l.sequence + t, largest + logf(sum));
}

// ---- the program

class Attention final : public AttentionProblem {
  public:
    Attention(CudaBackend& backend, const Sizes& sizes)
        : AttentionProblem(backend, sizes),
          scores_(output(DType::float32, {shape_.batch * shape_.heads, shape_.sequence, shape_.sequence})),
          workspace_(memory(backend.attention_backward_workspace(shape_))) {
        if (shape_.head_dim > most_head_dim) throw std::runtime_error("attention: --head_dim at most 256");
        backend.attention_forward(
            {.y = y_in_, .log_sum_exp = log_sum_exp_in_, .qkv = qkv_.tensor(), .shape = shape_});
    }

    std::vector<Operation> operations() override {
        Operation forward = forward_operation();
        forward.variants = forward_variants();
        Operation backward = backward_operation();
        backward.variants = {{"attention_backward.cu", [this] { backward_of_backend(); }}};
        return {forward, backward};
    }

  private:
    std::vector<Variant> forward_variants() {
        bfloat16* y = y_.as<bfloat16>();
        float *log_sum_exp = log_sum_exp_.as<float>(), *scores = scores_.as<float>();
        const bfloat16* qkv = qkv_.tensor().as<bfloat16>();
        const Layout l{static_cast<int>(shape_.sequence), static_cast<int>(shape_.heads),
                       static_cast<int>(shape_.kv_heads), static_cast<int>(shape_.head_dim),
                       1.0f / std::sqrt(static_cast<float>(shape_.head_dim))};
        return {{"scores in memory",
                 [=, this] {
                     constexpr int threads = 256;
                     const auto T = static_cast<unsigned>(shape_.sequence);
                     const auto heads = static_cast<unsigned>(shape_.batch * shape_.heads);
                     CU_LAUNCH(score_kernel, dim3(blocks_for(T, threads), T, heads), threads, 0, stream(),
                               scores, qkv, l);
                     CU_LAUNCH(softmax_kernel, dim3(blocks_for(T, threads / 32), heads), threads, 0, stream(),
                               scores, log_sum_exp, l);
                     CU_LAUNCH(weighted_value_kernel, blocks_for(y_.elements(), threads), threads, 0,
                               stream(), y, scores, qkv, y_.elements(), l);
                 }},
                {"a warp per query",
                 [=, this] {
                     const dim3 grid(blocks_for(shape_.sequence, query_warps),
                                     static_cast<unsigned>(shape_.heads),
                                     static_cast<unsigned>(shape_.batch));
                     CU_LAUNCH(warp_per_query, grid, query_warps * 32, 0, stream(), y, log_sum_exp, qkv, l);
                 }},
                {"attention_forward.cu", [this] {
                     backend().attention_forward(
                         {.y = y_, .log_sum_exp = log_sum_exp_, .qkv = qkv_.tensor(), .shape = shape_});
                 }}};
    }

    void backward_of_backend() {
        backend().attention_backward({.dqkv = dqkv_,
                                      .dy = dy_.tensor(),
                                      .qkv = qkv_.tensor(),
                                      .y = y_in_,
                                      .log_sum_exp = log_sum_exp_in_,
                                      .shape = shape_,
                                      .workspace = workspace_});
    }

    Tensor scores_;
    void* workspace_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"attention",
                          "Causal attention with grouped key/value heads in bfloat16, forward and backward.",
                          {{"batch", 16, {2, 1, 1, 1, 2}},
                           {"sequence", 1024, {67, 1, 130, 131, 65}},
                           {"heads", 12, {4, 2, 1, 2, 2}},
                           {"kv_heads", 12, {2, 2, 1, 1, 2}},
                           {"head_dim", 64, {18, 64, 128, 32, 96}}},
                          [](CudaBackend& backend, const Sizes& sizes) {
                              return std::make_unique<Attention>(backend, sizes);
                          }},
                         argc, argv);
}
