// How a matmul keeps its right operand (inner, columns): in panels of 64 columns, so that a step of the sum reads 256
// consecutive bytes, whatever the instruction set.
//
//     element (k, j) is in panel j / 64, at step k / width, column j % 64, half k % width:
//     [columns / 64][steps][64] of Element: a float, or the pair of bfloat16 numbers 2 step and 2 step + 1 (width 2)
//
// Sixteen steps by sixteen columns of bfloat16 are a matrix tile. So steps of bfloat16 come in sixteens. What lies
// beyond the matrix is zero.
#pragma once

#include <algorithm>

#include "kernels/cpu/products/elements.h"

namespace train_qat {

inline constexpr int64_t panel_columns = 64;

struct PanelLayout {
    DType dtype = DType::float32;
    int64_t inner = 0, columns = 0;

    bool paired() const { return dtype == DType::bfloat16; }
    int64_t steps() const { return paired() ? round_up(inner, 32) / 2 : inner; }
    int64_t panels() const { return (columns + panel_columns - 1) / panel_columns; }
    // Elements, of four bytes.
    int64_t panel_elements() const { return steps() * panel_columns; }
    int64_t bytes() const { return panels() * panel_elements() * int64_t{sizeof(float)}; }
};

// Of one panel, the steps that hold rows [first_row, first_row + rows) of a row-major matrix (inner, columns). The panel
// is that of the matrix's columns from first_column on. first_row: even. Then zeros, up to padded_steps.
template <typename Element, typename T>
inline void pack_panel(Element* __restrict panel, const T* matrix, int64_t stride, int64_t first_row,
                       int64_t rows, int64_t first_column, int64_t columns, int64_t padded_steps) {
    constexpr int64_t width = element_width<Element>;
    const int64_t count = std::min(panel_columns, columns - first_column);
    const T* const source = matrix + first_row * stride + first_column;
    Element* const out = panel + first_row / width * panel_columns;
    if (count == panel_columns)
        pack_right(out, panel_columns, source, stride, rows,
                   panel_columns);  // of a length the compiler knows
    else
        pack_right(out, panel_columns, source, stride, rows, count);
    const int64_t written = elements_for<Element>(first_row + rows);
    if (padded_steps > written)
        std::memset(static_cast<void*>(panel + written * panel_columns), 0,
                    static_cast<size_t>((padded_steps - written) * panel_columns) * sizeof(Element));
}

}  // namespace train_qat
