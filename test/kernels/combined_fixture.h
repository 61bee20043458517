// A matmul and what follows it, as one operation: its data, and its outputs beside the oracle's.
#pragma once

#include <string>

#include "test/support/device.h"

namespace train_qat::test {

// "" or what is wrong with the outputs, and these.
struct CombinedOutcome {
    std::string wrong;
    Array first, second;  // gate_up and y; of RoPE qkv and nothing
};

// Weights in full precision, or 4-bit levels with one scale per row.
inline HostParameter linear_layer(Random& random, int64_t N, int64_t K, bool scaled) {
    return random_parameter(random, N, K, scaled ? Grid::integer4 : Grid::none, scaled ? K : 0);
}

struct RopeCase {
    AttentionShape shape;
    int64_t K;
    bool scaled;
    DType type = DType::bfloat16;
    uint64_t seed = 1;
};
inline std::string text(const RopeCase& c) {
    const AttentionShape& s = c.shape;
    return std::string(name_of(c.type)) + " B " + std::to_string(s.batch) + " T " +
           std::to_string(s.sequence) + " H " + std::to_string(s.heads) + " G " + std::to_string(s.kv_heads) +
           " D " + std::to_string(s.head_dim) + " K " + std::to_string(c.K) + (c.scaled ? ", scaled" : "") +
           ", numbers from " + std::to_string(c.seed);
}
// call(arguments) computes. slack: of what lies between the two operations, see difference().
template <typename Call>
CombinedOutcome matmul_rope(Backend& backend, const RopeCase& c, double slack, Call&& call) {
    const AttentionShape& s = c.shape;
    const int64_t M = s.rows(), N = s.qkv_columns(), positions = s.sequence + 3, half = s.head_dim / 2;
    Random random(c.seed);
    Bench bench(backend);
    const HostParameter host = linear_layer(random, N, c.K, c.scaled);
    const ComputeWeight& weight = place_weight(bench, host, c.type);
    const Array x = random.normals(M * c.K, c.type);
    reference::RopeTables tables = reference::rope_tables(positions, s.head_dim, 10000);
    tables.cosines = reference::rounded(DType::float32, tables.cosines);
    tables.sines = reference::rounded(DType::float32, tables.sines);
    const Tensor qkv = bench.output("qkv", c.type, {M, N});
    call(MatmulRopeForward{
        .matmul = {.z = qkv, .x = bench.input("x", x, c.type, {M, c.K}), .weight = weight},
        .rope = {.qkv = qkv,
                 .cosines = bench.input("cosines", tables.cosines, DType::float32, {positions, half}),
                 .sines = bench.input("sines", tables.sines, DType::float32, {positions, half}),
                 .column_scale = weight.row_scale(),
                 .shape = s}});
    const reference::QuantizedMatrix q = host.quantized(c.type);
    const reference::Result product = reference::matmul_forward(x, q, M, N, c.K);
    reference::Result expected =
        reference::rope_forward(reference::scale_columns(product.value, q.row_scale), tables,
                                {s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim});
    const Array magnitude = reference::scale_columns(product.magnitude, q.row_scale);
    for (int64_t i = 0; i < M * N; ++i) {
        const int64_t partner = i % s.head_dim < half ? i + half : i - half;
        expected.magnitude[i] = magnitude[i] + magnitude[partner];
    }
    const Array values = bench.read(qkv);
    return {difference(values, expected, c.type, slack) + bench.damage(), values, {}};
}

struct SwigluCase {
    int64_t M, F, K;
    bool scaled;
    DType type = DType::bfloat16;
    uint64_t seed = 1;
};
inline std::string text(const SwigluCase& c) {
    return std::string(name_of(c.type)) + " M " + std::to_string(c.M) + " F " + std::to_string(c.F) + " K " +
           std::to_string(c.K) + (c.scaled ? ", scaled" : "") + ", numbers from " + std::to_string(c.seed);
}
template <typename Call>
CombinedOutcome matmul_swiglu(Backend& backend, const SwigluCase& c, Call&& call) {
    constexpr double exponential = 0x1p-20;  // its error
    Random random(c.seed);
    Bench bench(backend);
    const HostParameter host = linear_layer(random, 2 * c.F, c.K, c.scaled);
    const ComputeWeight& weight = place_weight(bench, host, c.type);
    const Array x = random.normals(c.M * c.K, c.type);
    const Tensor gate_up = bench.output("gate_up", c.type, {c.M, 2 * c.F}),
                 y = bench.output("y", c.type, {c.M, c.F}), scale = weight.row_scale();
    call(MatmulSwigluForward{
        .matmul = {.z = gate_up, .x = bench.input("x", x, c.type, {c.M, c.K}), .weight = weight},
        .swiglu = {.y = y, .gate_up = gate_up, .column_scale = scale}});
    const Array between = bench.read(gate_up), values = bench.read(y);
    const reference::Result product = reference::matmul_forward(x, host.quantized(c.type), c.M, 2 * c.F, c.K);
    const reference::Result expected = reference::swiglu_forward(
        reference::scale_columns(between, scale.empty() ? Array() : bench.read(scale)), c.M, c.F);
    const std::string first = difference(between, product, c.type, float32_sum(c.K)),
                      second = difference(values, expected, c.type, exponential);
    return {
        (first.empty() ? "" : "gate_up: " + first) + (second.empty() ? "" : "y: " + second) + bench.damage(),
        between, values};
}

}  // namespace train_qat::test
