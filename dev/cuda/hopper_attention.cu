// Causal attention by Hopper's own instructions, beside the kernels for all devices: what those of hopper_attention.cuh and
// hopper_backward.cuh in kernels/cuda/attention/ gain by ideas that no card has measured yet.
//
//   forward
//     1 attention_forward.cu      the kernel for all devices
//     2 hopper_attention.cuh      as it stands
//     3 one stage more            of keys and values
//     4 without hidden keys       the first warpgroup leaves out the later half of its diagonal tile
//     5 with what y lacks         as it trains: the remainder of y is written for the backward pass
//   forward, some exponentials as polynomials: the special function unit gives 16 a clock and multiprocessor, so that with
//   heads of 64 exponentials take as long as the products
//     6 a quarter of them
//     7 a quarter, and without hidden keys
//
//   backward
//     8 attention_backward.cu     the kernels for all devices
//     9 hopper_backward.cuh       as it stands, a block for each key/value head
//    10 2 blocks a head           as many again read the same queries; 4 more bytes of dq a number
//    11 4 blocks a head
//    12 scores after dq           and not before it leaves: what their overlap is worth
//    13 a buffer of values more   heads of 64: for one stage of queries less
//
// A cubic polynomial is good to 7.5e-5, a twentieth of what rounding weights to bfloat16 costs; log_sum_exp, their sum, shows it.
// For cards of compute capability 9.0; head dimension 64 or 128.
#include "dev/cuda/attention_problem.h"
#include "kernels/cuda/attention/hopper_attention.cuh"
#include "kernels/cuda/attention/hopper_backward.cuh"
#include "kernels/cuda/platform/hopper_device.h"

namespace train_qat::CU_BACKEND {

namespace {

using namespace attention;

// 2^x for x at most 100 by the FMA pipe: 2^n times the cubic polynomial of f that has the least relative error
// on [-1/2, 1/2], 7.5e-5, with n = x rounded and f = x - n. Below -126 it stays at 2^-126, and so it does where x is not a number.
CU_DEVICE float polynomial_exp2(float x) {
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: added, the sum's last bits are n
    const float bounded = fmaxf(x, -126.0f), shifted = bounded + to_integer;
    const float f = bounded - (shifted - to_integer);
    const float power = ((0.0551716685f * f + 0.242611125f) * f + 0.693260968f) * f + 0.999928057f;
    return __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
}

template <int D, int more_stages, bool skips, bool polynomials>
struct Idea : HopperForm<D> {
    static constexpr int stages = HopperForm<D>::stages + more_stages;
    static constexpr bool skips_hidden_keys = skips;
    CU_DEVICE static float exponential(float x, int index) {
        return polynomials && index % 4 == 3 ? polynomial_exp2(x) : flushed_exp2(x);
    }
};

template <int D>
struct ScoresAfter : HopperBackwardForm<D> {
    static constexpr bool scores_ahead = false;
};
template <int D>
struct MoreValues : HopperBackwardForm<D> {
    static constexpr int stages = 2, value_buffers = D == 64 ? 2 : 1;
};

class HopperAttention final : public AttentionProblem {
  public:
    HopperAttention(CudaBackend& backend, const Sizes& sizes) : AttentionProblem(backend, sizes) {
        require_hopper(backend.device(), "hopper_attention", "use such a card");
        multiprocessors_ = backend.device().properties().multiprocessors;
        if (shape_.head_dim != 64 && shape_.head_dim != 128)
            throw std::runtime_error("hopper_attention: --head_dim must be 64 or 128");
        y_remainder_ = output(DType::bfloat16, {shape_.rows(), width_});
        const int64_t needed = BackwardWorkspace<HopperBackwardForm<64>>(shape_, most_splits).bytes();
        workspace_ = memory(std::max(needed, backend.attention_backward_workspace(shape_)));
        if (shape_.head_dim == 64)
            launch_keeping<HopperForm<64, true>>(y_in_, log_sum_exp_in_);
        else
            launch_keeping<HopperForm<128, true>>(y_in_, log_sum_exp_in_);
    }

    std::vector<Operation> operations() override {
        Operation exact = forward_operation(), polynomials = forward_operation(0x1p-12);
        polynomials.name = "forward, some exponentials as polynomials";
        exact.variants = {
            {"attention_forward.cu",
             [this] {
                 backend().attention_forward(
                     {.y = y_, .log_sum_exp = log_sum_exp_, .qkv = qkv_.tensor(), .shape = shape_});
             }},
            variant<0, false, false>("hopper_attention.cuh"),
            variant<1, false, false>("one stage more, heads of 64"),
            variant<0, true, false>("without hidden keys"),
            {"with what y lacks", [this] {
                 if (shape_.head_dim == 64)
                     launch_keeping<HopperForm<64, true>>(y_, log_sum_exp_);
                 else
                     launch_keeping<HopperForm<128, true>>(y_, log_sum_exp_);
             }}};
        polynomials.variants = {variant<0, false, true>("a quarter of them"),
                                variant<0, true, true>("a quarter, and without hidden keys")};
        Operation backward = backward_operation();
        backward.variants = {{"attention_backward.cu",
                              [this] {
                                  AttentionBackward arguments = backward_arguments();
                                  arguments.y_remainder = {};
                                  backend().attention_backward(arguments);
                              }},
                             backward_variant<HopperBackwardForm>("hopper_backward.cuh", 1),
                             backward_variant<HopperBackwardForm>("2 blocks a head", 2),
                             backward_variant<HopperBackwardForm>("4 blocks a head", 4),
                             backward_variant<ScoresAfter>("scores after dq", 1),
                             backward_variant<MoreValues>("a buffer of values more", 1)};
        return {exact, polynomials, backward};
    }

  private:
    template <int more_stages, bool skips, bool polynomials>
    Variant variant(const char* name) {
        // Heads of 128 leave no room for one more.
        return {name, [this] {
                    if (shape_.head_dim == 64)
                        launch<Idea<64, more_stages, skips, polynomials>>();
                    else
                        launch<Idea<128, 0, skips, polynomials>>();
                }};
    }
    template <typename Form>
    void launch() {
        launch_hopper_forward<Form>(stream(), multiprocessors_, y_.as<bfloat16>(), nullptr,
                                    log_sum_exp_.as<float>(), qkv_.tensor().as<bfloat16>(), shape_);
    }
    template <typename Form>
    void launch_keeping(const Tensor& y, const Tensor& log_sum_exp) {
        launch_hopper_forward<Form>(stream(), multiprocessors_, y.as<bfloat16>(), y_remainder_.as<bfloat16>(),
                                    log_sum_exp.as<float>(), qkv_.tensor().as<bfloat16>(), shape_);
    }

    AttentionBackward backward_arguments() const {
        return {.dqkv = dqkv_,
                .dy = dy_.tensor(),
                .qkv = qkv_.tensor(),
                .y = y_in_,
                .log_sum_exp = log_sum_exp_in_,
                .y_remainder = y_remainder_,
                .shape = shape_,
                .workspace = workspace_};
    }
    template <template <int> typename Form>
    Variant backward_variant(const char* name, int splits) {
        return {name, [this, splits] {
                    const int tiles = static_cast<int>(blocks_for(shape_.sequence, tile_rows));
                    const auto launch = shape_.head_dim == 64 ? launch_hopper_backward<Form<64>>
                                                              : launch_hopper_backward<Form<128>>;
                    launch(stream(), backward_arguments(), std::min(splits, tiles));
                }};
    }

    static constexpr int most_splits = 4;
    int multiprocessors_ = 1;
    Tensor y_remainder_;
    void* workspace_ = nullptr;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"hopper_attention",
                          "Causal attention in bfloat16 by Hopper's own instructions, forward and backward.",
                          {{"batch", 32, {2, 1, 1}},
                           {"sequence", 1024, {67, 300, 130}},
                           {"heads", 12, {4, 2, 2}},
                           {"kv_heads", 12, {2, 2, 1}},
                           {"head_dim", 64, {64, 64, 128}}},
                          [](CudaBackend& backend, const Sizes& sizes) {
                              return std::make_unique<HopperAttention>(backend, sizes);
                          }},
                         argc, argv);
}
