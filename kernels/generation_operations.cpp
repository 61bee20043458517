// Entry checks and lower bounds of cost of the operations of generation.
#include "kernels/generation_operations.h"

#include <stdexcept>
#include <string>

#include "kernels/checks.h"
#include "kernels/codes.h"

namespace train_qat {

namespace {

void check_packed(const char* name, const PackedMatrix& weight) {
    const auto wrong = [name](const char* what) {
        throw std::logic_error(std::string(name) + ": weight" + what);
    };
    if (weight.rows < 1 || weight.columns < 1 || weight.message.numbers == nullptr) wrong(" is empty");
    if (weight.message.row_bytes != packed_row_bytes(weight.columns, weight.grid, weight.dtype))
        wrong("'s rows have another length than its columns need");
    if (weight.grid == Grid::none) return;
    const bool grouped = weight.group != weight.columns;
    if (weight.group < 1 || weight.columns % weight.group != 0 || (grouped && weight.group % 8 != 0))
        wrong("'s group must be all columns, or a multiple of 8 that divides them");
    if (weight.message.scales == nullptr || weight.message.scales_per_row != weight.columns / weight.group)
        wrong(" needs a scale for each group");
}

}  // namespace

int64_t packed_row_bytes(int64_t columns, Grid grid, DType dtype) {
    if (grid != Grid::none) return code_row_bytes(columns, code_bits(grid));
    if (dtype == DType::int32) throw std::logic_error("packed_row_bytes: int32 is not a compute type");
    return code_row_bytes(columns, static_cast<int>(8 * size_of(dtype)));
}

void PackedMatmulForward::check() const {
    const int64_t rows = x.shape[0];
    check_packed(name, weight);
    check_tensor(name, "x", x, DType::float32, {rows, weight.columns});
    check_tensor(name, "y", y, DType::float32, {rows, weight.rows});
}

OperationCost PackedMatmulForward::cost() const {
    return {0, sum_of_bytes({y, x}) + static_cast<double>(weight.number_bytes() + weight.scale_bytes())};
}

void PackedEmbeddingForward::check() const {
    const int64_t rows = tokens.shape[0];
    check_packed(name, weight);
    check_tensor(name, "tokens", tokens, DType::int32, {rows});
    check_tensor(name, "y", y, DType::float32, {rows, weight.columns});
}

OperationCost PackedEmbeddingForward::cost() const {
    return {0, sum_of_bytes({y}) + static_cast<double>(tokens.elements() * weight.message.row_bytes)};
}

void CachedAttentionForward::check() const {
    check_attention(name, shape);
    if (shape.batch != 1) throw std::logic_error(std::string(name) + ": shape.batch must be 1");
    const int64_t capacity = values.shape[1], D = shape.head_dim;
    check_tensor(name, "y", y, DType::float32, {shape.sequence, shape.heads * D});
    check_tensor(name, "qkv", qkv, DType::float32, {shape.sequence, shape.qkv_columns()});
    check_tensor(name, "keys", keys, DType::float32, {shape.kv_heads, D, capacity});
    check_tensor(name, "values", values, DType::float32, {shape.kv_heads, capacity, D});
    if (position < 0 || position + shape.sequence > capacity)
        throw std::logic_error(std::string(name) + ": position lies outside the caches");
}

// The caches up to the last position read once, besides what is new.
OperationCost CachedAttentionForward::cost() const {
    const int64_t cached = 2 * (position + shape.sequence) * shape.kv_heads * shape.head_dim;
    return {0, sum_of_bytes({y, qkv}) + 4 * static_cast<double>(cached)};
}

}  // namespace train_qat
