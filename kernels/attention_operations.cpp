// Entry checks and lower bounds of cost of attention's operations, once for all backends.
#include "kernels/attention_operations.h"

#include <stdexcept>
#include <string>

#include "kernels/checks.h"

namespace train_qat {

namespace {

constexpr DType float32 = DType::float32;

void check_head_norm(const char* name, const Tensor& x, const Tensor& rstd, const Tensor& column_scale,
                     const Tensor& query_weight, const Tensor& key_weight, const AttentionShape& shape) {
    check_attention(name, shape);
    if (shape.head_dim > most_normed_head_dim)
        throw std::logic_error(std::string(name) + ": needs a head dimension of at most " +
                               std::to_string(most_normed_head_dim) + ", not " +
                               std::to_string(shape.head_dim));
    check_compute_type(name, "x", x);
    check_tensor(name, "x", x, x.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "rstd", rstd, float32, {shape.rows(), shape.normed_heads()});
    check_optional(name, "column_scale", column_scale, float32, {shape.qkv_columns()});
    check_tensor(name, "query_weight", query_weight, float32, {shape.head_dim});
    check_tensor(name, "key_weight", key_weight, float32, {shape.head_dim});
}

void check_rope(const char* name, const Tensor& qkv, const Tensor& cosines, const Tensor& sines,
                const Tensor& column_scale, const AttentionShape& shape) {
    check_attention(name, shape);
    check_compute_type(name, "qkv", qkv);
    check_tensor(name, "qkv", qkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    check_optional(name, "column_scale", column_scale, float32, {shape.qkv_columns()});
    if (cosines.rank < 1 || cosines.shape[0] < shape.sequence)
        throw std::logic_error(std::string(name) + ": cosines must have a row for each position");
    check_tensor(name, "cosines", cosines, float32, {cosines.shape[0], shape.head_dim / 2});
    check_tensor(name, "sines", sines, float32, {cosines.shape[0], shape.head_dim / 2});
}

// Two FLOPs for each pair of a query and a key that it sees, and each number of a head: one product.
double causal_product_flops(const AttentionShape& s) {
    const double pairs = 0.5 * static_cast<double>(s.sequence) * static_cast<double>(s.sequence + 1);
    return 2 * static_cast<double>(s.batch * s.heads) * pairs * static_cast<double>(s.head_dim);
}

}  // namespace

void HeadNormForward::check() const {
    check_head_norm(name, x, rstd, column_scale, query_weight, key_weight, shape);
    check_tensor(name, "y", y, x.dtype, {shape.rows(), shape.qkv_columns()});
    if (y.data == x.data) throw std::logic_error(std::string(name) + ": y must not be x's memory");
}

OperationCost HeadNormForward::cost() const {
    return {0, sum_of_bytes({y, rstd, x})};
}

void HeadNormBackward::check() const {
    check_head_norm(name, x, rstd, column_scale, query_weight, key_weight, shape);
    check_tensor(name, "dy", dy, x.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "dx", dx, x.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "dquery_weight", dquery_weight, float32, {shape.head_dim});
    check_tensor(name, "dkey_weight", dkey_weight, float32, {shape.head_dim});
}

// Of x the values are not read.
OperationCost HeadNormBackward::cost() const {
    const double normed =
        static_cast<double>(shape.normed_heads()) / static_cast<double>(shape.heads + 2 * shape.kv_heads);
    return {0, sum_of_bytes({dx, dy, rstd}) + normed * sum_of_bytes({x})};
}

void RopeForward::check() const {
    check_rope(name, qkv, cosines, sines, column_scale, shape);
}

OperationCost RopeForward::cost() const {
    return {0, 2 * sum_of_bytes({qkv})};
}

void RopeBackward::check() const {
    check_rope(name, dqkv, cosines, sines, column_scale, shape);
}

OperationCost RopeBackward::cost() const {
    return {0, 2 * sum_of_bytes({dqkv})};
}

void AttentionForward::check() const {
    check_attention(name, shape);
    check_compute_type(name, "qkv", qkv);
    check_tensor(name, "qkv", qkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "y", y, qkv.dtype, {shape.rows(), shape.heads * shape.head_dim});
    check_optional(name, "y_remainder", y_remainder, qkv.dtype, {shape.rows(), shape.heads * shape.head_dim});
    check_tensor(name, "log_sum_exp", log_sum_exp, float32, {shape.batch, shape.heads, shape.sequence});
}

// Scores and weighted values.
OperationCost AttentionForward::cost() const {
    return {2 * causal_product_flops(shape), 0};
}

void AttentionBackward::check() const {
    check_attention(name, shape);
    const int64_t columns = shape.heads * shape.head_dim;
    check_compute_type(name, "qkv", qkv);
    check_tensor(name, "qkv", qkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "dqkv", dqkv, qkv.dtype, {shape.rows(), shape.qkv_columns()});
    check_tensor(name, "y", y, qkv.dtype, {shape.rows(), columns});
    check_tensor(name, "dy", dy, qkv.dtype, {shape.rows(), columns});
    check_optional(name, "y_remainder", y_remainder, qkv.dtype, {shape.rows(), columns});
    check_tensor(name, "log_sum_exp", log_sum_exp, float32, {shape.batch, shape.heads, shape.sequence});
}

// Scores again, and the gradients of weights, values, queries and keys.
OperationCost AttentionBackward::cost() const {
    return {5 * causal_product_flops(shape), 0};
}

}  // namespace train_qat
