// Causal attention, forward, by Hopper's own instructions: when it applies, and its launch. The kernel: hopper_attention.cuh.
#include <stdexcept>
#include <string>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/hopper_attention.cuh"

namespace train_qat::CU_BACKEND {

using namespace attention;

void hopper_attention_forward(Device& device, const AttentionForward& a) {
    if (a.qkv.dtype != DType::bfloat16)
        throw std::runtime_error("-attention hopper: has no kernel for " + std::string(name_of(a.qkv.dtype)) +
                                 ": give -dtype bf16 or -attention auto");
    if (a.shape.head_dim != 64 && a.shape.head_dim != 128)
        throw std::runtime_error("-attention hopper: has no kernel for head dimension " +
                                 std::to_string(a.shape.head_dim) +
                                 ", only for 64 and 128: give -attention auto");
    const auto launch = a.shape.head_dim == 64 ? launch_hopper_forward<HopperForm<64>>
                                               : launch_hopper_forward<HopperForm<128>>;
    launch(device.stream(), device.properties().multiprocessors, a.y.as<bfloat16>(),
           a.log_sum_exp.as<float>(), a.qkv.as<bfloat16>(), a.shape);
}

}  // namespace train_qat::CU_BACKEND
