// Weights as packed codes on the emulated device, and what the fused matmuls with them must give: by the kernels of all
// cards, and by Hopper's where they take the shape.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/codes.h"
#include "kernels/cuda/hopper_matmul/hopper_fakequant_matmul.h"
#include "kernels/cuda/matmul/fakequant_matmul.h"
#include "test/kernels/cuda/matmul_fixture.h"
#include "test/support/device.h"

namespace train_qat::test {

// ---- weights

// A weight on the host whose master is bfloat16 numbers.
inline HostParameter random_weight(Random& random, int64_t N, int64_t K, Grid grid, int64_t group) {
    HostParameter host = random_parameter(random, N, K, grid, group);
    host.master = reference::rounded(DType::bfloat16, host.master);
    return host;
}

// Four numbers to a float32 of device memory, which any bytes fit into.
inline Tensor place_bytes(Bench& bench, std::vector<unsigned char> bytes) {
    bytes.resize((bytes.size() + 3) / 4 * 4);
    Tensor memory = bench.update("bytes", Array(bytes.size() / 4, 0.0), DType::float32,
                                 {static_cast<int64_t>(bytes.size()) / 4});
    bench.backend().copy_to_device(memory.data, bytes.data(), static_cast<int64_t>(bytes.size()));
    return memory;
}

// Codes and, with several to a row, effective scales, as the device has them (kernels/cuda/weights/weight_layout.h).
inline std::vector<unsigned char> packed(const HostParameter& host) {
    const int bits = code_bits(host.grid);
    const int64_t row_bytes = code_row_bytes(host.columns, bits);
    std::vector<unsigned char> codes(host.rows * row_bytes, 0);
    for (int64_t n = 0; n < host.rows; ++n)
        for (int64_t k = 0; k < host.columns; ++k) {
            const int64_t i = n * host.columns + k;
            const double scale = reference::effective_scale(host.scale[i / host.group]);
            const double level = reference::level(host.grid, reference::ratio(host.master[i], scale));
            const auto code =
                static_cast<unsigned>((level - lowest_level(host.grid)) / level_step(host.grid));
            codes[n * row_bytes + k * bits / 8] |= static_cast<unsigned char>(code << (k * bits % 8));
        }
    if (host.one_scale_per_row()) return codes;
    for (const double scale : host.scale) {
        const auto effective = static_cast<float>(reference::effective_scale(scale));
        const auto* bytes = reinterpret_cast<const unsigned char*>(&effective);
        codes.insert(codes.end(), bytes, bytes + sizeof effective);
    }
    return codes;
}

inline ComputeWeight place_codes(Bench& bench, const HostParameter& host) {
    ComputeWeight weight;
    weight.rows = host.rows;
    weight.columns = host.columns;
    weight.codes = host.grid;
    weight.code_group = host.group;
    weight.storage = place_bytes(bench, packed(host)).data;
    return weight;
}

// ---- products

struct Shape {
    int64_t M, N, K;
};
inline std::string text(const Shape& s) {
    return "M " + std::to_string(s.M) + " N " + std::to_string(s.N) + " K " + std::to_string(s.K);
}

inline bool hopper_takes(const HostParameter& host) {
    return CU_BACKEND::hopper_refusal(host.rows, host.columns, host.group).empty();
}

// By `multiply`(out, left, weight).
template <typename Multiply>
Outcome outcome(Backend& backend, const HostParameter& host, const Shape& s, bool forward, DType out_type,
                const Array& left, Multiply&& multiply) {
    Bench bench(backend);
    const ComputeWeight weight = place_codes(bench, host);
    const int64_t inner = forward ? s.K : s.N, columns = forward ? s.N : s.K;
    const Tensor out = bench.output("the product", out_type, {s.M, columns});
    multiply(out, bench.input("the left operand", left, DType::bfloat16, {s.M, inner}), weight);
    const Array q = host.quantized(DType::bfloat16).q, values = bench.read(out);
    const reference::Result expected = forward ? reference::matmul_forward(left, {q, {}}, s.M, s.N, s.K)
                                               : reference::matmul_input_gradient(left, q, s.M, s.N, s.K);
    return {values, difference(values, expected, out_type, float32_sum(inner)) + bench.damage()};
}

using Plan = std::optional<CU_BACKEND::CodePlan>;

// z = x qᵀ or dx = dz q by Hopper's kernels.
inline Outcome hopper_outcome(const HostParameter& host, const Shape& s, bool forward, const Array& left,
                              const Plan& plan) {
    const HopperScope scope;
    Backend& backend = hopper_device();
    return outcome(backend, host, s, forward, DType::bfloat16, left,
                   [&](const Tensor& out, const Tensor& in, const ComputeWeight& weight) {
                       if (forward)
                           CU_BACKEND::hopper_matmul_forward(device_of(backend), out, in, weight, plan);
                       else
                           CU_BACKEND::hopper_matmul_input_gradient(device_of(backend), out, in, weight,
                                                                    plan);
                   });
}

inline Plan plan_of(CU_BACKEND::TileSize size) {
    using CU_BACKEND::CodePlan;
    if (size == CU_BACKEND::TileSize::automatic) return {};
    return CodePlan{size == CU_BACKEND::TileSize::small ? CodePlan::few : CodePlan::many, 1};
}

// "" or what is wrong with z = x qᵀ.
inline std::string check_forward(const HostParameter& host, const Shape& s, DType z_type,
                                 CU_BACKEND::TileSize size) {
    Random random(1);
    const Array x = random.normals(s.M * s.K, DType::bfloat16);
    const std::string hopper =
        hopper_takes(host) ? hopper_outcome(host, s, true, x, plan_of(size)).wrong : "";
    return (hopper.empty() ? "" : "on Hopper: " + hopper) +
           outcome(emulated_device(), host, s, true, z_type, x,
                   [&](const Tensor& z, const Tensor& in, const ComputeWeight& weight) {
                       CU_BACKEND::fakequant_matmul_forward(emulated_stream(), z, in, weight, size);
                   })
               .wrong;
}

// "" or what is wrong with dx = dz q.
inline std::string check_input_gradient(const HostParameter& host, const Shape& s,
                                        CU_BACKEND::TileSize size) {
    Random random(2);
    const Array dz = random.normals(s.M * s.N, DType::bfloat16, 1e-3);
    const std::string hopper =
        hopper_takes(host) ? hopper_outcome(host, s, false, dz, plan_of(size)).wrong : "";
    return (hopper.empty() ? "" : "on Hopper: " + hopper) +
           outcome(emulated_device(), host, s, false, DType::bfloat16, dz,
                   [&](const Tensor& dx, const Tensor& in, const ComputeWeight& weight) {
                       CU_BACKEND::fakequant_matmul_input_gradient(emulated_stream(), dx, in, weight, size);
                   })
               .wrong;
}

}  // namespace train_qat::test
