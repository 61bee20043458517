// Launches the kernel of hopper_code_matmul.cuh.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "kernels/cuda/hopper_matmul/hopper_code_matmul.cuh"
#include "kernels/cuda/hopper_matmul/split_sum.h"
#include "kernels/cuda/platform/device.h"
#include "kernels/cuda/platform/tensor_map.cuh"

namespace train_qat::CU_BACKEND {

// out (M, features) = left (M, inner) times the weight, both bfloat16. codes: for Matmul::Codes. splits: 1, but for tiles whose
// consumers share features; fewer where some would be empty.
template <typename Matmul>
void launch_code_matmul(Device& device, const Tensor& out, const Tensor& left, const TensorMap& codes,
                        const typename Matmul::Codes::Levels& levels, const GroupScales& scales,
                        int wanted_splits) {
    const int64_t tokens = out.shape[0], features = out.shape[1], inner = left.shape[1];
    const TensorMap left_map =
        make_matrix_map("the activations", left.as<bfloat16>(), tokens, inner, Matmul::tokens);
    const TensorMap out_map = make_matrix_map("the product", out.as<bfloat16>(), tokens, features, 64);
    const int rounds = static_cast<int>(blocks_for(inner, Matmul::slice * Matmul::rings));
    const int of_split = static_cast<int>(blocks_for(rounds, wanted_splits)),
              splits = static_cast<int>(blocks_for(rounds, of_split));
    const CodeSteps steps{static_cast<int>(blocks_for(tokens, Matmul::tokens)),
                          static_cast<int>(blocks_for(features, Matmul::features)), rounds * Matmul::rings,
                          splits, of_split * Matmul::rings};
    const int64_t pieces = int64_t{steps.token_tiles} * steps.feature_tiles * splits;
    constexpr int64_t most = 1 << 30;  // positions are int
    if (std::max({tokens, features, inner, pieces}) > most)
        throw std::logic_error("hopper_matmul: more than 2^30 rows, columns or tiles");
    float* const partial = splits > 1 ? static_cast<float*>(device.scratch(
                                            splits * tokens * features * static_cast<int64_t>(sizeof(float))))
                                      : nullptr;
    const auto blocks =
        static_cast<unsigned>(std::min(pieces, static_cast<int64_t>(device.properties().multiprocessors)));
    CU_LAUNCH((code_matmul<Matmul>), dim3(blocks), dim3(ring_threads), Matmul::shared_bytes, device.stream(),
              left_map, codes, out_map,
              SplitSums{partial, static_cast<int>(tokens), static_cast<int>(features)}, levels, scales,
              steps);
    if (splits > 1) add_splits(device.stream(), out, partial, splits);
}

}  // namespace train_qat::CU_BACKEND
