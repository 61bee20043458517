// Element types and the non-owning view that every operation takes.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#define TRAIN_QAT_HOST_DEVICE __host__ __device__
#else
#define TRAIN_QAT_HOST_DEVICE
#endif

namespace train_qat {

enum class DType : uint8_t { float32, bfloat16, int32 };

inline int64_t size_of(DType dtype) {
    return dtype == DType::bfloat16 ? 2 : 4;
}

inline const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return "float32";
        case DType::bfloat16:
            return "bfloat16";
        case DType::int32:
            return "int32";
    }
    return "unknown";
}

// The upper half of an IEEE float: 8 exponent bits, 7 stored mantissa bits. Conversions round to nearest,
// ties to even, and keep NaN a NaN. Plain integer code, so that compilers vectorize loops over it.
struct bfloat16 {
    uint16_t bits;  // no initializer: shared memory holds arrays of these

    bfloat16() = default;
    TRAIN_QAT_HOST_DEVICE explicit bfloat16(float value) : bits(rounded(value)) {}
    // Loops store through this: a loop that copies whole structs is not vectorized.
    TRAIN_QAT_HOST_DEVICE bfloat16& operator=(float value) {
        bits = rounded(value);
        return *this;
    }
    TRAIN_QAT_HOST_DEVICE operator float() const {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }

  private:
    TRAIN_QAT_HOST_DEVICE static uint16_t rounded(float value) {
#if defined(__CUDA_ARCH__)
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));  // one instruction
#else
        uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        const uint32_t nearest = word + 0x7fffu + ((word >> 16) & 1u);
        const uint32_t quiet_nan = word | 0x00400000u;
        return static_cast<uint16_t>(((word & 0x7fffffffu) > 0x7f800000u ? quiet_nan : nearest) >> 16);
#endif
    }
};

template <typename T>
inline constexpr DType dtype_of = DType::float32;
template <>
inline constexpr DType dtype_of<bfloat16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<int32_t> = DType::int32;

// A dense row-major array in the memory of a backend. Does not own it. An empty view (data == nullptr) stands
// for an absent optional argument.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::float32;
    int rank = 0;
    int64_t shape[4] = {0, 0, 0, 0};

    Tensor() = default;
    Tensor(void* data_, DType dtype_, std::initializer_list<int64_t> shape_) : data(data_), dtype(dtype_) {
        if (shape_.size() > 4) throw std::logic_error("Tensor: at most four dimensions");
        for (int64_t extent : shape_) shape[rank++] = extent;
    }

    bool empty() const { return data == nullptr; }
    int64_t elements() const {
        int64_t product = rank > 0 ? 1 : 0;
        for (int i = 0; i < rank; ++i) product *= shape[i];
        return product;
    }
    int64_t bytes() const { return elements() * size_of(dtype); }

    // Typed pointer; a wrong type is a bug of the caller.
    template <typename T>
    T* as() const {
        if (data != nullptr && dtype != dtype_of<T>)
            throw std::logic_error(std::string("Tensor: is ") + name_of(dtype) + ", read as " +
                                   name_of(dtype_of<T>));
        return static_cast<T*>(data);
    }

    // Rows [first, first + count) of the leading dimension.
    Tensor rows(int64_t first, int64_t count) const {
        Tensor view = *this;
        const int64_t row_bytes = rank > 0 && shape[0] > 0 ? bytes() / shape[0] : 0;
        view.data = data == nullptr ? nullptr : static_cast<char*>(data) + first * row_bytes;
        view.shape[0] = count;
        return view;
    }
};

}  // namespace train_qat
