// What ComputeWeight::storage holds on the CPU:
//   [rows as they are, for look-ups (embeddings only) | panels for y = x qᵀ | panels for dx = dz q]
// Packing happens when the levels are written, once per optimizer step; inside the matmuls it would happen
// twice in every micro-batch.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/products/panels.h"
#include "kernels/cpu/products/past_caches.h"
#include "kernels/cpu/products/transpose.h"

namespace train_qat {

struct PackedWeight {
    void* rows = nullptr;      // (N, K) row-major, or null
    void* forward = nullptr;   // right operand (K, N)
    void* backward = nullptr;  // right operand (N, K)
    PanelLayout forward_layout, backward_layout;
};

inline int64_t row_bytes_of_packed_weight(const ComputeWeight& weight) {
    return weight.embedding ? round_up(weight.rows * weight.columns * size_of(weight.dtype), 64) : 0;
}

inline int64_t packed_weight_bytes(int64_t rows, int64_t columns, DType dtype, bool embedding) {
    ComputeWeight weight;
    weight.rows = rows, weight.columns = columns, weight.dtype = dtype, weight.embedding = embedding;
    return row_bytes_of_packed_weight(weight) + PanelLayout{dtype, columns, rows}.bytes() +
           PanelLayout{dtype, rows, columns}.bytes();
}

inline PackedWeight packed_weight(const ComputeWeight& weight) {
    PackedWeight packed;
    packed.forward_layout = {weight.dtype, weight.columns, weight.rows};
    packed.backward_layout = {weight.dtype, weight.rows, weight.columns};
    char* const memory = static_cast<char*>(weight.storage);
    packed.rows = weight.embedding ? memory : nullptr;
    packed.forward = memory + row_bytes_of_packed_weight(weight);
    packed.backward = static_cast<char*>(packed.forward) + packed.forward_layout.bytes();
    return packed;
}

// One element of a row of levels: at `step`, zero beyond the row's end.
template <typename Element, typename T>
inline Element element_of(const T* levels, int64_t columns, int64_t step) {
    const int64_t first = step * element_width<Element>, last = first + element_width<Element> - 1;
    Element element;
    join(element, first < columns ? levels[first] : T(), last < columns ? levels[last] : T());
    return element;
}

// Rows of a weight are columns of the forward operand.
template <typename Element, typename T>
inline void write_forward(Element* panels, const PanelLayout& layout, int64_t row, int64_t count,
                          const T* levels) {
    const int64_t columns = layout.inner, steps = elements_for<Element>(columns);
    Element* const panel = panels + row / panel_columns * layout.panel_elements() + row % panel_columns;
    int64_t step = 0;
    if (count == 16 && columns % element_width<Element> == 0)
        for (; step + 16 <= steps; step += 16) {
            alignas(64) Element square[16 * 16];
            transpose_square(square, 16, reinterpret_cast<const Element*>(levels) + step, steps);
            for (int64_t i = 0; i < 16; ++i)
                copy_past_caches(panel + (step + i) * panel_columns, square + i * 16, sizeof(Element) * 16);
        }
    for (int64_t r = 0; r < count; ++r)
        for (int64_t rest = step; rest < layout.steps(); ++rest)
            panel[rest * panel_columns + r] = element_of<Element>(levels + r * columns, columns, rest);
}

// Zeros from row `row` of a right operand to the end of its steps.
template <typename Element>
inline void clear_steps(Element* panels, const PanelLayout& layout, int64_t row) {
    constexpr int64_t width = element_width<Element>;
    for (int64_t panel = 0; panel < layout.panels(); ++panel)
        for (int64_t i = row; i < layout.steps() * width; ++i) {
            Element* const elements = panels + panel * layout.panel_elements() + i / width * panel_columns;
            using Part = std::conditional_t<width == 1, float, uint16_t>;
            for (int64_t c = 0; c < panel_columns; ++c) reinterpret_cast<Part*>(elements + c)[i % width] = 0;
        }
}

// Rows of a weight are summed in the backward operand: with pairs, two rows are one row of a panel.
template <typename Element, typename T>
inline void write_backward(Element* panels, const PanelLayout& layout, int64_t row, int64_t count,
                           const T* levels) {
    constexpr int64_t width = element_width<Element>;
    const int64_t columns = layout.columns;
    for (int64_t r = 0; r < count;) {
        const int64_t half = (row + r) % width;
        const bool whole = half == 0 && r + width <= count;
        const T* const first = levels + r * columns;
        for (int64_t column = 0; column < columns; column += panel_columns) {
            Element* const out =
                panels + column / panel_columns * layout.panel_elements() + (row + r) / width * panel_columns;
            const int64_t here = std::min(panel_columns, columns - column);
            if (whole) {
                alignas(64) Element line[panel_columns];
                pack_right(line, here, first + column, columns, width, here);
                copy_past_caches(out, line, here * int64_t{sizeof(Element)});
                continue;
            }
            // The other half belongs to another call.
            T* const halves = reinterpret_cast<T*>(out) + half;
            for (int64_t c = 0; c < here; ++c) halves[c * width] = first[column + c];
        }
        r += whole ? width : 1;
    }
    if (row + count == layout.inner) clear_steps(panels, layout, layout.inner);
}

// Rows [row, row + count) of levels (count, columns): up to 16, not across a multiple of 16. Zeros where these rows, or
// with the matrix's last row all columns, end within a step or a tile. Columns that pad a panel stay what they are: they
// make sums that nobody reads. Then finish_past_caches().
template <typename T>
inline void write_packed(const PackedWeight& packed, int64_t row, int64_t count, const T* levels) {
    using Element = typename TileElement<T>::type;
    const int64_t columns = packed.forward_layout.inner;
    if (packed.rows != nullptr)
        copy_past_caches(static_cast<T*>(packed.rows) + row * columns, levels,
                         count * columns * int64_t{sizeof(T)});
    write_forward(static_cast<Element*>(packed.forward), packed.forward_layout, row, count, levels);
    write_backward(static_cast<Element*>(packed.backward), packed.backward_layout, row, count, levels);
}

}  // namespace train_qat
