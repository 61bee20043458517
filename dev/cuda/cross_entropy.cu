// Softmax cross entropy and its gradient (kernels/operations.h), with l = column_scale ∘ logits:
//     loss     = log(sum_v e^l[v]) - l[target]
//     d_logits = column_scale ∘ (e^l / sum - onehot) * factor
// of float32 logits into a bfloat16 gradient, and of bfloat16 logits in place.
//
//   1 three passes           the maximum, then the sum, then the gradient, each from memory
//   2 online softmax         maximum and sum in one pass: a new maximum shrinks the sum so far
//   3 cross_entropy.cu       online, in vectors, and the row stays in shared memory for the gradient
//   4 base 2                 3 with e^x as 2^(x log2 e): a multiply-add and one instruction instead of eight, and
//                            log2(factor / sum) inside the exponent of the gradient
//   5 base 2, from L2        4 without shared memory: the gradient's logits are read again, out of the L2 cache where
//                            rows under way fit there; all threads that registers allow are resident
//   6 next row under way     4 with blocks that stay: where a thread has used a number for the gradient, it starts to
//                            copy the next row's into its place, so that loads run beside the gradient's stores
//
// One block per row, 6: per row and after it another. The limit is the memory's: the logits once in, the gradient once
// out. Rows of the usual vocabularies are larger than what caches keep of them between the passes.
//
// What 3 to 6 are about (V 50,304, an H100: 132 multiprocessors, 25 bytes a nanosecond each, 600 ns away: 15 KB must be
// under way). 3 has one float32 row (201 KB of shared memory) on a multiprocessor: it loads, meets, then stores, so that
// memory sees either loads or stores, and neither at the two meetings; it measured 56% of the bandwidth. Of bfloat16
// two rows fit, of which one can load while the other stores. sm_90a code of 3 has some 45 instructions a number in both
// passes: 2.5 ms for 32,768 rows, beside the 2.9 ms (float32) or 2.0 ms (bfloat16) that their bytes take; of 4 and 6,
// some 17 (25 with scales): 1.0 ms (1.4), and the two exponentials of a number, 16 a cycle, 0.9. In 6 a row of loads is
// under way while the row before is stored, also where only one fits. Rows in registers instead of shared memory would
// not let more be resident: 1024 threads of 64 registers fill a multiprocessor as well.
#include <algorithm>
#include <cmath>

#include "dev/cuda/bench.h"
#include "dev/cuda/cross_entropy_base_two.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int threads = 512;
// ---- one number at a time

// at_target: read before the block's last meeting, as gradients may take the logits' place.
template <typename L>
CU_DEVICE void write_row(const Rows<L>& p, const L* row, float largest, float sum, float at_target) {
    const int64_t m = blockIdx.x;
    const int target = load(p.targets + m);
    if (threadIdx.x == 0) store(p.losses + m, logf(sum) + (largest - at_target));
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads) {
        const float probability = expf(logit(p, row, v) - largest) / sum;
        const float gradient = (v == target ? probability - 1.0f : probability) * factor;
        const float scale = p.column_scale != nullptr ? load(p.column_scale + v) : 1.0f;
        store(p.d_logits + m * p.columns + v, static_cast<bfloat16>(gradient * scale));
    }
}

template <typename L>
__global__ void __launch_bounds__(threads) three_passes(Rows<L> p) {
    CU_SHARED(scratch, float[threads / 32]);
    const L* row = p.logits + int64_t{blockIdx.x} * p.columns;
    const float at_target = logit(p, row, load(p.targets + blockIdx.x));
    float largest = -HUGE_VALF;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads)
        largest = fmaxf(largest, logit(p, row, v));
    largest = max_over_block(largest, &scratch[0]);
    float sum = 0;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads)
        sum += expf(logit(p, row, v) - largest);
    sum = block_sum<threads>(sum, &scratch[0]);
    write_row(p, row, largest, sum, at_target);
}

template <typename L>
__global__ void __launch_bounds__(threads) online_softmax(Rows<L> p) {
    CU_SHARED(scratch, float[threads / 32]);
    const L* row = p.logits + int64_t{blockIdx.x} * p.columns;
    const float at_target = logit(p, row, load(p.targets + blockIdx.x));
    float own_largest = -HUGE_VALF, own_sum = 0;
    for (int v = static_cast<int>(threadIdx.x); v < p.columns; v += threads) {
        const float l = logit(p, row, v);
        if (l > own_largest) {
            own_sum *= expf(own_largest - l);
            own_largest = l;
        }
        own_sum += expf(l - own_largest);
    }
    const float largest = max_over_block(own_largest, &scratch[0]);
    // A thread without a column has a maximum of -infinity and adds 0.
    const float sum = block_sum<threads>(own_sum * expf(own_largest - largest), &scratch[0]);
    write_row(p, row, largest, sum, at_target);
}

// ---- the program

template <typename Function>
void with_scales(bool scaled, Function&& function) {
    if (scaled)
        function.template operator()<true>();
    else
        function.template operator()<false>();
}

class CrossEntropy final : public Problem {
  public:
    CrossEntropy(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          V_(sizes.at("vocabulary")),
          scaled_(sizes.at("scales") != 0),
          logits_(normals(DType::float32, {M_, V_}, 3)),
          narrow_logits_(normals(DType::bfloat16, {M_, V_}, 3)),
          targets_(tokens({M_}, V_)),
          column_scale_(positives(DType::float32, {V_})),
          losses_(output(DType::float32, {M_})),
          d_logits_(output(DType::bfloat16, {M_, V_})) {}

    std::vector<Operation> operations() override {
        return {operation<float>("float32 logits", logits_, d_logits_),
                operation<bfloat16>("bfloat16 logits in place", narrow_logits_, narrow_logits_.tensor())};
    }

  private:
    Tensor scale() const { return scaled_ ? column_scale_.tensor() : Tensor(); }

    template <typename L>
    Operation operation(const char* name, const Numbers& logits, const Tensor& d_logits) {
        const Rows<L> p{losses_.as<float>(),     d_logits.as<bfloat16>(),
                        logits.tensor().as<L>(), targets_.tensor().as<int32_t>(),
                        scale().as<float>(),     static_cast<int>(M_),
                        static_cast<int>(V_)};
        const auto rows = static_cast<unsigned>(M_);
        return {.name = name,
                .bytes = static_cast<double>(logits.tensor().bytes() + d_logits.bytes()),
                .reset =
                    [=, this] {
                        poison(losses_);
                        poison(d_logits);
                        upload(logits);
                    },
                .compare = [=, this] { return compare(logits, d_logits); },
                .variants =
                    {
                        {"three passes",
                         [=, this] { CU_LAUNCH(three_passes<L>, rows, threads, 0, stream(), p); }},
                        {"online softmax",
                         [=, this] { CU_LAUNCH(online_softmax<L>, rows, threads, 0, stream(), p); }},
                        {"cross_entropy.cu",
                         [=, this] {
                             this->backend().cross_entropy({.losses = losses_,
                                                            .d_logits = d_logits,
                                                            .logits = logits.tensor(),
                                                            .targets = targets_.tensor(),
                                                            .column_scale = scale(),
                                                            .gradient_factor = factor});
                         }},
                        {"base 2", [=, this] { launch_base_two(p, true); }},
                        {"base 2, from L2", [=, this] { launch_base_two(p, false); }},
                        {"next row under way", [=, this] { launch_next_row(p); }},
                    }};
    }

    int64_t shared_limit() { return backend().device().properties().shared_memory_per_block - 1024; }

    // As in cross_entropy.cu: rows beyond shared memory are read again.
    template <typename L>
    void launch_base_two(const Rows<L>& p, bool keep) {
        const int64_t row_bytes = V_ * static_cast<int64_t>(sizeof(L));
        keep = keep && row_bytes <= shared_limit();
        with_width<wide<L>>(rows_aligned<wide<L>>(V_, p.logits), [&]<int width>() {
            with_scales(scaled_, [&]<bool scaled>() {
                const auto rows = static_cast<unsigned>(M_);
                const unsigned block = balanced_threads(
                    std::min<int64_t>((V_ + width - 1) / width, row_threads<L>), row_threads<L>);
                if (keep)
                    CU_LAUNCH((base_two<L, width, scaled, true>), rows, block,
                              static_cast<unsigned>(row_bytes), stream(), p);
                else
                    CU_LAUNCH((base_two<L, width, scaled, false>), rows, block, 0, stream(), p);
            });
        });
    }

    // Copies are of whole vectors and of rows that shared memory holds; others as in variant 4.
    template <typename L>
    void launch_next_row(const Rows<L>& p) {
        const int64_t row_bytes = V_ * static_cast<int64_t>(sizeof(L));
        if (!rows_aligned<wide<L>>(V_, p.logits) || row_bytes > shared_limit())
            return launch_base_two(p, true);
        // As many as fit on a multiprocessor, each with 2 KB besides its row.
        const int64_t resident =
            std::clamp<int64_t>((shared_limit() + 2048) / (row_bytes + 2048), 1, 4 / sizeof(L));
        const int64_t blocks = std::min(M_, resident * backend().device().properties().multiprocessors);
        with_scales(scaled_, [&]<bool scaled>() {
            CU_LAUNCH((next_row_under_way<L, scaled>), static_cast<unsigned>(blocks), row_threads<L>,
                      static_cast<unsigned>(row_bytes), stream(), p);
        });
    }

    Comparison compare(const Numbers& logits, const Tensor& d_logits) {
        Comparison result;
        const Array scales = scaled_ ? column_scale_.all() : Array();
        for (int64_t m : sample(M_)) {
            const reference::CrossEntropy expected =
                reference::cross_entropy(reference::scale_columns(logits.rows(m, 1), scales),
                                         targets_.rows(m, 1), scales, static_cast<double>(factor), 1, V_);
            // A logit of float32 is off by half a unit, and the exponential turns that into a relative error.
            constexpr double exponent = 0x1p-19;
            result.add(read(losses_.rows(m, 1)), expected.losses, DType::float32, 0x1p-22 + float32_sum(V_));
            result.add(read(d_logits.rows(m, 1)), expected.d_logits, DType::bfloat16,
                       exponent + float32_sum(V_));
        }
        return result;
    }

    int64_t M_, V_;
    bool scaled_;
    Numbers logits_, narrow_logits_, targets_, column_scale_;
    Tensor losses_, d_logits_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"cross_entropy",
                          "Softmax cross entropy of float32 or bfloat16 logits and its bfloat16 gradient.",
                          {{"rows", 4096, {37, 1, 3, 37}},
                           {"vocabulary", 32000, {131, 2, 4100, 4104}},
                           {"scales", 1, {1, 0, 1, 0}}},
                          [](CudaBackend& backend, const Sizes& sizes) {
                              return std::make_unique<CrossEntropy>(backend, sizes);
                          }},
                         argc, argv);
}
