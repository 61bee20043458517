// Tensor maps (hopper.cuh), made on the host: a tensor in global memory and the box of it that a bulk copy moves.
#pragma once

#include <cstdint>

#include "kernels/cuda/platform/hopper.cuh"

namespace train_qat::CU_BACKEND {

enum class TensorElement : uint8_t { byte, bfloat16, float32 };
template <typename T>
inline constexpr TensorElement tensor_element_of = TensorElement::byte;
template <>
inline constexpr TensorElement tensor_element_of<bfloat16> = TensorElement::bfloat16;
template <>
inline constexpr TensorElement tensor_element_of<float> = TensorElement::float32;

// Innermost dimension first.
struct TensorLayout {
    const char* name;  // for errors
    int rank = 2;      // 2 or 3
    int64_t extent[3] = {1, 1, 1};
    int64_t pitch[2] = {0, 0};  // bytes from one to the next in dimensions 1 and 2: multiples of 16
    int box[3] = {1, 1, 1};     // 1 ... 256
    bool swizzled = true;  // by 128 bytes; the box's rows must then be 128 bytes, without it a multiple of 16
};

// Throws std::runtime_error, one line that names what is wrong, where the hardware would refuse or misread it.
TensorMap encode_tensor_map(const void* address, TensorElement element, const TensorLayout& layout);

// T: uint8_t, bfloat16 or float.
template <typename T>
TensorMap make_tensor_map(const T* address, const TensorLayout& layout) {
    static_assert(std::is_same_v<T, uint8_t> || tensor_element_of<T> != TensorElement::byte);
    return encode_tensor_map(address, tensor_element_of<T>, layout);
}

// A row-major matrix (rows, columns) without gaps, and boxes (box_rows, as many columns as are 128 bytes) of it.
template <typename T>
TensorMap make_matrix_map(const char* name, const T* address, int64_t rows, int64_t columns, int box_rows) {
    constexpr int size = sizeof(T);
    return make_tensor_map(address, {.name = name,
                                     .rank = 2,
                                     .extent = {columns, rows, 1},
                                     .pitch = {columns * size, 0},
                                     .box = {swizzle_row_bytes / size, box_rows, 1},
                                     .swizzled = true});
}

}  // namespace train_qat::CU_BACKEND
