// Softmax cross entropy and its gradient (kernels/operations.h), with l = column_scale ∘ logits:
//     loss     = log(sum_v e^l[v]) - l[target]
//     d_logits = column_scale ∘ (e^l / sum - onehot) * factor
//
//   1 three passes           the maximum, then the sum, then the gradient, each from memory
//   2 online softmax         maximum and sum in one pass: a new maximum shrinks the sum so far
//   3 cross_entropy.cu       online, in vectors, and the row stays in shared memory for the gradient
//
// All use one block per row. The limit is the memory's: the logits once in, the gradient once out. Rows of
// the usual vocabularies are larger than what caches keep of them between the passes.
#include <cmath>

#include "dev/cuda/bench.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 512;
constexpr float factor = 1.0f / 1024;

struct Rows {
    float* losses;              // (M)
    bfloat16* d_logits;         // (M, V)
    const float* logits;        // (M, V)
    const int32_t* targets;     // (M)
    const float* column_scale;  // (V)
    int columns;                // V
};

CU_DEVICE float logit(const Rows& p, const float* row, int v) {
    return load(row + v) * load(p.column_scale + v);
}

// scratch: a number for each warp.
CU_DEVICE float block_max(float value, float* scratch) {
    value = warp_max(value);
    if (lane_index() == 0) store_shared(scratch + warp_index(), value);
    block_sync();
    float largest = load_shared(scratch);
    CU_UNROLL
    for (int warp = 1; warp < threads / 32; ++warp) largest = fmaxf(largest, load_shared(scratch + warp));
    block_sync();
    return largest;
}

CU_DEVICE void write_row(const Rows& p, const float* row, float largest, float sum) {
    const int64_t m = blockIdx.x;
    const int target = load(p.targets + m);
    if (threadIdx.x == 0) store(p.losses + m, logf(sum) + (largest - logit(p, row, target)));
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads) {
        const float probability = expf(logit(p, row, v) - largest) / sum;
        const float gradient = (v == target ? probability - 1.0f : probability) * factor;
        store(p.d_logits + m * p.columns + v, static_cast<bfloat16>(gradient * load(p.column_scale + v)));
    }
}

__global__ void __launch_bounds__(threads) three_passes(Rows p) {
    CU_SHARED(scratch, float[threads / 32]);
    const float* row = p.logits + int64_t{blockIdx.x} * p.columns;
    float largest = -HUGE_VALF;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads)
        largest = fmaxf(largest, logit(p, row, v));
    largest = block_max(largest, &scratch[0]);
    float sum = 0;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads)
        sum += expf(logit(p, row, v) - largest);
    sum = block_sum<threads>(sum, &scratch[0]);
    write_row(p, row, largest, sum);
}

__global__ void __launch_bounds__(threads) online_softmax(Rows p) {
    CU_SHARED(scratch, float[threads / 32]);
    const float* row = p.logits + int64_t{blockIdx.x} * p.columns;
    float own_largest = -HUGE_VALF, own_sum = 0;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads) {
        const float l = logit(p, row, v);
        if (l > own_largest) {
            own_sum *= expf(own_largest - l);
            own_largest = l;
        }
        own_sum += expf(l - own_largest);
    }
    const float largest = block_max(own_largest, &scratch[0]);
    // A thread without a column has a maximum of -infinity and adds 0.
    const float sum = block_sum<threads>(own_sum * expf(own_largest - largest), &scratch[0]);
    write_row(p, row, largest, sum);
}

// ---- the program

class CrossEntropy final : public Problem {
  public:
    CrossEntropy(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          V_(sizes.at("vocabulary")),
          logits_(normals(DType::float32, {M_, V_}, 3)),
          targets_(tokens({M_}, V_)),
          column_scale_(positives(DType::float32, {V_})),
          losses_(output(DType::float32, {M_})),
          d_logits_(output(DType::bfloat16, {M_, V_})) {}

    std::vector<Operation> operations() override {
        const Rows p{losses_.as<float>(),
                     d_logits_.as<bfloat16>(),
                     logits_.tensor().as<float>(),
                     targets_.tensor().as<int32_t>(),
                     column_scale_.tensor().as<float>(),
                     static_cast<int>(V_)};
        const auto rows = static_cast<unsigned>(M_);
        Operation operation{
            .name = "loss and gradient",
            .bytes = static_cast<double>(logits_.tensor().bytes() + d_logits_.bytes()),
            .reset =
                [this] {
                    poison(losses_);
                    poison(d_logits_);
                },
            .compare = [this] { return compare(); },
            .variants = {},
        };
        operation.variants.push_back(
            {"three passes", [=, this] { CU_LAUNCH(three_passes, rows, threads, 0, stream(), p); }});
        operation.variants.push_back(
            {"online softmax", [=, this] { CU_LAUNCH(online_softmax, rows, threads, 0, stream(), p); }});
        operation.variants.push_back({"cross_entropy.cu", [this] {
                                          backend().cross_entropy({.losses = losses_,
                                                                   .d_logits = d_logits_,
                                                                   .logits = logits_.tensor(),
                                                                   .targets = targets_.tensor(),
                                                                   .column_scale = column_scale_.tensor(),
                                                                   .gradient_factor = factor});
                                      }});
        return {operation};
    }

  private:
    Comparison compare() {
        Comparison result;
        for (int64_t m : sample(M_)) {
            const Array scaled = reference::scale_columns(logits_.rows(m, 1), column_scale_.all());
            const reference::CrossEntropy expected = reference::cross_entropy(
                scaled, targets_.rows(m, 1), column_scale_.all(), static_cast<double>(factor), 1, V_);
            // A logit of float32 is off by half a unit, and the exponential turns that into a relative error.
            constexpr double exponent = 0x1p-19;
            result.add(read(losses_.rows(m, 1)), expected.losses, DType::float32, 0x1p-22 + float32_sum(V_));
            result.add(read(d_logits_.rows(m, 1)), expected.d_logits, DType::bfloat16,
                       exponent + float32_sum(V_));
        }
        return result;
    }

    int64_t M_, V_;
    Numbers logits_, targets_, column_scale_;
    Tensor losses_, d_logits_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"cross_entropy",
                          "Softmax cross entropy of float32 logits and its bfloat16 gradient.",
                          {{"rows", 4096, {37, 1, 3}}, {"vocabulary", 32000, {131, 2, 4100}}},
                          [](CudaBackend& backend, const Sizes& sizes) {
                              return std::make_unique<CrossEntropy>(backend, sizes);
                          }},
                         argc, argv);
}
