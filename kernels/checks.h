// Entry checks of operations, the same on all backends: std::logic_error naming operation and argument.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernels/operations.h"

namespace train_qat {

void check_tensor(const char* operation, const char* argument, const Tensor& tensor, DType dtype,
                  std::initializer_list<int64_t> shape);
inline void check_optional(const char* operation, const char* argument, const Tensor& tensor, DType dtype,
                           std::initializer_list<int64_t> shape) {
    if (!tensor.empty()) check_tensor(operation, argument, tensor, dtype, shape);
}
// float32 or bfloat16.
void check_compute_type(const char* operation, const char* argument, const Tensor& tensor);
void check_attention(const char* operation, const AttentionShape& shape);

// A parameter that need not have weights here: shape and place in its compute weight, which it must have.
void check_compute_rows(const char* operation, const ParameterRows& parameter);

// Of one parameter, each including the one before: shape and weights; gradients; moments.
void check_parameter(const char* operation, const ParameterRows& parameter);
void check_gradients(const char* operation, const ParameterRows& parameter);
void check_moments(const char* operation, const ParameterRows& parameter);

// Calls function.template operator()<T>() with the C++ type of a compute type.
template <typename Function>
decltype(auto) with_compute_type(const char* operation, DType dtype, Function&& function) {
    if (dtype == DType::bfloat16) return function.template operator()<bfloat16>();
    if (dtype == DType::float32) return function.template operator()<float>();
    throw std::logic_error(std::string(operation) + ": " + name_of(dtype) + " is not a compute type");
}

}  // namespace train_qat
