// Which unit multiplies matrices of a type: CpuBackend::with_matmul_unit.
#pragma once

#include <stdexcept>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/products/units.h"

namespace train_qat {

template <typename T, typename Function>
void CpuBackend::with_matmul_unit(Function&& function) const {
    using Element = ElementOf<T>;
    if constexpr (std::is_same_v<Element, BFloat16Pair>) {
#if defined(__x86_64__)
        if (matmul_unit_ == MatmulUnit::tiles) return function.template operator()<TileUnit<MatrixTiles>>();
#endif
        if (matmul_unit_ == MatmulUnit::emulated_tiles)
            return function.template operator()<TileUnit<EmulatedMatrixTiles>>();
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        throw std::logic_error("matmul: this build has no products of bfloat16");
    }
    function.template operator()<VectorUnit<Element>>();
}

}  // namespace train_qat
