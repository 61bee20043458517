#include "kernels/checks.h"

namespace train_qat {

void check_tensor(const char* operation, const char* argument, const Tensor& tensor, DType dtype,
                  std::initializer_list<int64_t> shape) {
    const auto text = [](auto begin, auto end) {
        std::string result = "(";
        for (auto it = begin; it != end; ++it)
            result += (it == begin ? "" : ", ") + (*it < 0 ? "any" : std::to_string(*it));
        return result + ")";
    };
    bool same = !tensor.empty() && tensor.dtype == dtype && tensor.rank == static_cast<int>(shape.size());
    int i = 0;
    for (int64_t extent : shape) same = same && tensor.shape[i++] == extent;
    if (same) return;
    throw std::logic_error(
        std::string(operation) + ": " + argument + " must be " + name_of(dtype) +
        text(shape.begin(), shape.end()) + ", is " +
        (tensor.empty() ? "empty" : name_of(tensor.dtype) + text(tensor.shape, tensor.shape + tensor.rank)));
}

void check_compute_type(const char* operation, const char* argument, const Tensor& tensor) {
    if (tensor.dtype != DType::float32 && tensor.dtype != DType::bfloat16)
        throw std::logic_error(std::string(operation) + ": " + argument + " must have a compute type, is " +
                               name_of(tensor.dtype));
}

void check_attention(const char* operation, const AttentionShape& shape) {
    if (shape.batch < 1 || shape.sequence < 1 || shape.heads < 1 || shape.kv_heads < 1 ||
        shape.head_dim < 2 || shape.head_dim % 2 != 0 || shape.heads % shape.kv_heads != 0)
        throw std::logic_error(std::string(operation) +
                               ": needs B, T, H, G >= 1, an even head dimension and H a multiple of G");
}

namespace {

void require(bool condition, const char* operation, const char* what) {
    if (!condition) throw std::logic_error(std::string(operation) + ": " + what);
}

void check_group(const char* operation, const ParameterRows& p) {
    if (p.grid == Grid::none) return;
    require(p.group > 0 && p.columns % p.group == 0, operation,
            "the group must divide the columns of a parameter");
}

void check_place(const char* operation, const ParameterRows& p) {
    require(p.compute->columns == p.columns && p.first_row >= 0 && p.first_row + p.rows <= p.compute->rows,
            operation, "a parameter must lie within its compute weight");
    require(p.compute->storage != nullptr && p.compute->scale_storage != nullptr, operation,
            "a compute weight needs storage for levels and scales");
}

}  // namespace

void check_compute_rows(const char* operation, const ParameterRows& p) {
    require(p.rows > 0 && p.columns > 0 && p.compute != nullptr, operation,
            "a parameter needs rows, columns and a compute weight");
    check_group(operation, p);
    check_place(operation, p);
}

void check_parameter(const char* operation, const ParameterRows& p) {
    require(p.rows > 0 && p.columns > 0 && (p.master != nullptr || p.narrow_master != nullptr), operation,
            "a parameter needs rows, columns and weights");
    require(p.master == nullptr || p.narrow_master == nullptr, operation,
            "a parameter has weights in float32 or in bfloat16, not in both");
    check_group(operation, p);
    require(p.grid == Grid::none || p.scale != nullptr, operation, "a quantized parameter needs scales");
    if (p.compute != nullptr) check_place(operation, p);
}

void check_gradients(const char* operation, const ParameterRows& p) {
    check_parameter(operation, p);
    if (p.gradient == nullptr || (p.grid != Grid::none && p.scale_gradient == nullptr))
        throw std::logic_error(std::string(operation) +
                               ": a parameter needs gradients of its weights and scales");
}

void check_moments(const char* operation, const ParameterRows& p) {
    check_gradients(operation, p);
    if (p.first_moment == nullptr || p.second_moment == nullptr ||
        (p.grid != Grid::none && (p.scale_first_moment == nullptr || p.scale_second_moment == nullptr)))
        throw std::logic_error(std::string(operation) +
                               ": a parameter needs moments of its weights and scales");
}

}  // namespace train_qat
