#include "kernels/cuda/platform/tensor_map.cuh"

#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cudaTypedefs.h>
#endif

namespace train_qat::CU_BACKEND {

namespace {

constexpr int64_t alignment = 16, most_extent = int64_t{1} << 32, most_pitch = int64_t{1} << 40;
constexpr int most_box = 256;

int size_of(TensorElement element) {
    return element == TensorElement::byte ? 1 : element == TensorElement::bfloat16 ? 2 : 4;
}

void check(const void* address, TensorElement element, const TensorLayout& layout) {
    const auto require = [&](bool fine, const std::string& what, int64_t value, const std::string& rule) {
        if (!fine)
            throw std::runtime_error(std::string("tensor map of ") + layout.name + ": " + what + " is " +
                                     std::to_string(value) + ", which must be " + rule);
    };
    require(layout.rank == 2 || layout.rank == 3, "the rank", layout.rank, "2 or 3");
    const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address));
    require(address != nullptr && place % alignment == 0, "the address", place,
            "a multiple of 16, and not 0");
    for (int i = 0; i < layout.rank; ++i) {
        const std::string dimension = " of dimension " + std::to_string(i);
        require(layout.extent[i] >= 1 && layout.extent[i] <= most_extent, "the extent" + dimension,
                layout.extent[i], "1 ... 2^32");
        require(layout.box[i] >= 1 && layout.box[i] <= most_box, "the box" + dimension, layout.box[i],
                "1 ... 256");
    }
    for (int i = 0; i + 1 < layout.rank; ++i)
        require(layout.pitch[i] > 0 && layout.pitch[i] % alignment == 0 && layout.pitch[i] < most_pitch,
                "the pitch of dimension " + std::to_string(i + 1), layout.pitch[i],
                "a multiple of 16 bytes below 2^40: pad the rows");
    const int row_bytes = layout.box[0] * size_of(element);
    if (layout.swizzled)
        require(row_bytes == swizzle_row_bytes, "the box's row", row_bytes,
                "128 bytes with 128-byte swizzle");
    else
        require(row_bytes % alignment == 0, "the box's row", row_bytes, "a multiple of 16 bytes");
}

}  // namespace

#if defined(__CUDACC__)

namespace {

// The driver's function, found at run time: nothing links to the driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    constexpr unsigned first_version = 12000;
    CU_CALL(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, first_version,
                                             cudaEnableDefault, &found));
#else
    CU_CALL(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess)
        throw std::runtime_error("tensor maps need a driver of CUDA 12.0 or later");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType type_of(TensorElement element) {
    switch (element) {
        case TensorElement::bfloat16:
            return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        case TensorElement::float32:
            return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
        default:
            return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    }
}

}  // namespace

TensorMap encode_tensor_map(const void* address, TensorElement element, const TensorLayout& layout) {
    check(address, element, layout);
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
    TensorMap map;
    cuuint64_t extent[3], pitch[2];
    cuuint32_t box[3];
    const cuuint32_t steps[3] = {1, 1, 1};
    for (int i = 0; i < layout.rank; ++i) {
        extent[i] = static_cast<cuuint64_t>(layout.extent[i]);
        box[i] = static_cast<cuuint32_t>(layout.box[i]);
        if (i > 0) pitch[i - 1] = static_cast<cuuint64_t>(layout.pitch[i - 1]);
    }
    const CUresult status =
        encode(&map, type_of(element), static_cast<cuuint32_t>(layout.rank), const_cast<void*>(address),
               extent, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               layout.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS)
        throw std::runtime_error(std::string("tensor map of ") + layout.name +
                                 ": cuTensorMapEncodeTiled refuses it, status " + std::to_string(status));
    return map;
}

#else

TensorMap encode_tensor_map(const void* address, TensorElement element, const TensorLayout& layout) {
    check(address, element, layout);
    TensorMap map;
    map.mark = TensorMap::right_mark;
    map.address = static_cast<unsigned char*>(const_cast<void*>(address));
    map.rank = layout.rank;
    map.element_bytes = size_of(element);
    map.float32 = element == TensorElement::float32 ? 1 : 0;
    map.swizzled = layout.swizzled ? 1 : 0;
    for (int i = 0; i < layout.rank; ++i) {
        map.extent[i] = layout.extent[i];
        map.box[i] = layout.box[i];
        if (i > 0) map.pitch[i - 1] = layout.pitch[i - 1];
    }
    return map;
}

#endif

}  // namespace train_qat::CU_BACKEND
