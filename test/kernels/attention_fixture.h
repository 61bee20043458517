// One call of attention's operations on a backend, and what an implementation may be off.
#pragma once

#include <algorithm>
#include <string>

#include "test/support/device.h"

namespace train_qat::test {

inline reference::Shape plain(const AttentionShape& s) {
    return {s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
}

inline std::string text(const AttentionShape& s, DType type) {
    return std::string(name_of(type)) + " B " + std::to_string(s.batch) + " T " + std::to_string(s.sequence) +
           " H " + std::to_string(s.heads) + " G " + std::to_string(s.kv_heads) + " D " +
           std::to_string(s.head_dim);
}

// An implementation may round the softmax weights (forward) and the weights' gradients (backward) to the
// compute type before it multiplies with them, and their sums are long: half a unit of bfloat16 of each term
// at most. In float32 the softmax turns the absolute error of a score, a sum of D products, into a relative
// one.
inline double slack(DType type, const reference::AttentionForward& forward) {
    const Array& magnitude = forward.log_sum_exp_magnitude;
    return type == DType::bfloat16
               ? 0x1p-8
               : 0x1p-21 + 0x1p-22 * *std::max_element(magnitude.begin(), magnitude.end());
}

inline reference::Result log_sum_exp_bound(const reference::AttentionForward& forward) {
    reference::Result bound;
    bound.value = forward.log_sum_exp;
    bound.magnitude = forward.log_sum_exp_magnitude;
    return bound;
}

struct Outputs {
    Array y, log_sum_exp;
};

inline Outputs run_forward(Backend& backend, const Array& qkv, DType type, const AttentionShape& s,
                    std::string* damage) {
    Bench bench(backend);
    const Tensor y = bench.output("y", type, {s.rows(), s.heads * s.head_dim});
    const Tensor log_sum_exp = bench.output("log_sum_exp", DType::float32, {s.batch, s.heads, s.sequence});
    backend.attention_forward({.y = y,
                               .log_sum_exp = log_sum_exp,
                               .qkv = bench.input("qkv", qkv, type, {s.rows(), s.qkv_columns()}),
                               .shape = s});
    Outputs outputs{bench.read(y), bench.read(log_sum_exp)};
    if (damage != nullptr) *damage = bench.damage();
    return outputs;
}

inline Array run_backward(Backend& backend, const Array& dy, const Array& qkv, const Array& y,
                   const Array& log_sum_exp, DType type, const AttentionShape& s, std::string* damage) {
    Bench bench(backend);
    const int64_t M = s.rows(), width = s.heads * s.head_dim;
    const Tensor dqkv = bench.output("dqkv", type, {M, s.qkv_columns()});
    backend.attention_backward({.dqkv = dqkv,
                                .dy = bench.input("dy", dy, type, {M, width}),
                                .qkv = bench.input("qkv", qkv, type, {M, s.qkv_columns()}),
                                .y = bench.input("y", y, type, {M, width}),
                                .log_sum_exp = bench.input("log_sum_exp", log_sum_exp, DType::float32,
                                                           {s.batch, s.heads, s.sequence}),
                                .shape = s,
                                .workspace = bench.workspace(backend.attention_backward_workspace(s))});
    const Array result = bench.read(dqkv);
    if (damage != nullptr) *damage = bench.damage();
    return result;
}

}  // namespace train_qat::test
