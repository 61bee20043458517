// Causal attention, forward, by Hopper's own instructions, beside the kernel for all devices: what the kernel of
// kernels/cuda/attention/hopper_attention.cuh gains by ideas that no card has measured yet.
//
//   forward
//     1 attention_forward.cu      the kernel for all devices
//     2 hopper_attention.cuh      as it stands
//     3 one stage more            of keys and values
//     4 without hidden keys       the first warpgroup leaves out the later half of its diagonal tile
//   forward, some exponentials as polynomials: the special function unit gives 16 a clock and multiprocessor, so that with
//   heads of 64 exponentials take as long as the products
//     5 a quarter of them
//     6 a quarter, and without hidden keys
//
// A cubic polynomial is good to 7.5e-5, a twentieth of what rounding weights to bfloat16 costs; log_sum_exp, their sum, shows it.
// For cards of compute capability 9.0; head dimension 64 or 128.
#include "dev/cuda/attention_problem.h"
#include "kernels/cuda/attention/hopper_attention.cuh"
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

class HopperAttention final : public AttentionProblem {
  public:
    HopperAttention(CudaBackend& backend, const Sizes& sizes) : AttentionProblem(backend, sizes) {
        require_hopper(backend.device(), "hopper_attention", "use such a card");
        multiprocessors_ = backend.device().properties().multiprocessors;
        if (shape_.head_dim != 64 && shape_.head_dim != 128)
            throw std::runtime_error("hopper_attention: --head_dim must be 64 or 128");
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
            variant<0, true, false>("without hidden keys")};
        polynomials.variants = {variant<0, false, true>("a quarter of them"),
                                variant<0, true, true>("a quarter, and without hidden keys")};
        return {exact, polynomials};
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
        launch_hopper_forward<Form>(stream(), multiprocessors_, y_.as<bfloat16>(), log_sum_exp_.as<float>(),
                                    qkv_.tensor().as<bfloat16>(), shape_);
    }

    int multiprocessors_ = 1;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark({"hopper_attention",
                          "Causal attention in bfloat16 by Hopper's own instructions, forward.",
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
