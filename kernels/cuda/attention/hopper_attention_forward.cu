// Causal attention, forward, by Hopper's own instructions: its launch. The kernel: hopper_attention.cuh.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/hopper_attention.cuh"

namespace train_qat::CU_BACKEND {

using namespace attention;

void hopper_attention_forward(Device& device, const AttentionForward& a) {
    require_hopper_heads(a.qkv.dtype, a.shape.head_dim);
    const bool narrow = a.shape.head_dim == 64;
    const auto plain =
        narrow ? launch_hopper_forward<HopperForm<64>> : launch_hopper_forward<HopperForm<128>>;
    const auto keeping =
        narrow ? launch_hopper_forward<HopperForm<64, true>> : launch_hopper_forward<HopperForm<128, true>>;
    const auto launch = a.y_remainder.empty() ? plain : keeping;
    launch(device.stream(), device.properties().multiprocessors, a.y.as<bfloat16>(),
           a.y_remainder.as<bfloat16>(), a.log_sum_exp.as<float>(), a.qkv.as<bfloat16>(), a.shape);
}

}  // namespace train_qat::CU_BACKEND
