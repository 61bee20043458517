// The matmul of weight gradients, dq (N, K) (+)= dzᵀ x. Both operands are summed over their rows and have to be laid out for
// that (products/panels.h): the one with fewer columns first, by all threads together; of the other every task lays out one
// panel for itself, a part at a time, which never leaves the core's caches. At most 4,096 rows at a time, so that the
// memory for it stays small.
//
// Matrix tiles want the operand on the left transposed, which costs more than a panel: so it is the one that is laid out
// once. Where that is x, the product is dqᵀ, and is turned on its way into dq.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul_unit.h"

namespace train_qat {

namespace {

constexpr int64_t rows_at_once = 4096;
constexpr int64_t rows_of_packing = 256;  // of the shared operand, that one task lays out
constexpr int64_t steps_of_block = 512;   // of a sum; between blocks it is in dq
constexpr int64_t panels_of_task = 8;

template <typename T>
struct Operands {
    using Element = ElementOf<T>;
    SummedRows<T> shared, own;
    bool own_is_dz;
    Element* panels;  // of shared

    Element* shared_panel(int64_t index) const { return panels + index * shared.layout().panel_elements(); }
};

// One panel of own with the panels [first_panel, last_panel) of shared. block: memory for a part of own's panel.
template <typename Unit, typename T>
void multiply(const ProductRows<float>& dq, const Operands<T>& operands, int64_t own_index,
              int64_t first_panel, int64_t last_panel, ElementOf<T>* block, bool accumulate) {
    constexpr int64_t width = element_width<ElementOf<T>>;
    const SummedRows<T>&own = operands.own, shared = operands.shared;
    const int64_t own_column = own_index * panel_columns, own_columns = own.columns - own_column;
    for (int64_t first = 0; first * width < own.rows; first += steps_of_block) {
        const SummedRows<T> part =
            own.part(first * width, std::min(steps_of_block * width, own.rows - first * width));
        pack_panel(block, part.data, part.columns, 0, part.rows, own_column, part.columns,
                   part.layout().steps());
        for (int64_t i = first_panel; i < last_panel; ++i) {
            const int64_t column = i * panel_columns;
            const ProductRows<float> out =
                operands.own_is_dz ? dq.from(own_column, column) : dq.from(column, own_column);
            const int64_t rows = operands.own_is_dz ? own_columns : shared.columns - column;
            Unit::multiply_columns(
                out, std::min(panel_columns, rows), operands.shared_panel(i), shared.layout().steps(), first,
                block, elements_for<ElementOf<T>>(part.rows), operands.own_is_dz, accumulate || first > 0);
        }
    }
}

}  // namespace

template <typename Unit, typename T>
void CpuBackend::add_weight_gradient(float* dq, const T* dz, const T* x, int64_t rows, int64_t dz_columns,
                                     int64_t x_columns, bool accumulate) {
    Operands<T> operands;
    operands.own_is_dz = dz_columns >= x_columns;
    operands.shared = {x, rows, x_columns};
    operands.own = {dz, rows, dz_columns};
    if (!operands.own_is_dz) std::swap(operands.shared, operands.own);
    const PanelLayout layout = operands.shared.layout();
    operands.panels =
        reinterpret_cast<ElementOf<T>*>(matmul_memory_.at_least(layout.panels() * layout.panel_elements()));

    const int64_t chunks = (rows + rows_of_packing - 1) / rows_of_packing;
    parallel_for(layout.panels() * chunks, 1, [&](int64_t index, int64_t) {
        const int64_t panel = index / chunks, first = index % chunks * rows_of_packing;
        Unit::pack_shared(operands.shared_panel(panel), operands.shared, panel, first,
                          std::min(rows_of_packing, rows - first));
    });

    // Fewer panels a task where there would not be many tasks for each thread.
    const int64_t own_panels = operands.own.layout().panels();
    const int64_t wanted = (16 * threads_ + own_panels - 1) / own_panels;
    const int64_t task_panels =
        std::clamp((layout.panels() + wanted - 1) / wanted, int64_t{1}, panels_of_task);
    const int64_t tasks = (layout.panels() + task_panels - 1) / task_panels;
    parallel_for(own_panels * tasks, 1, [&](int64_t index, int64_t) {
        const int64_t first = index % tasks * task_panels;
        ElementOf<T>* const block =
            reinterpret_cast<ElementOf<T>*>(thread_scratch(steps_of_block * panel_columns));
        multiply<Unit>({dq, x_columns, x_columns}, operands, index / tasks, first,
                       std::min(layout.panels(), first + task_panels), block, accumulate);
    });
}

void CpuBackend::compute(const MatmulWeightGradient& args) {
    const int64_t rows = args.dz.shape[0], dz_columns = args.dz.shape[1], x_columns = args.x.shape[1];
    with_compute_type(args.name, args.dz.dtype, [&]<typename T>() {
        with_matmul_unit<T>([&]<typename Unit>() {
            for (int64_t first = 0; first < rows; first += rows_at_once)
                add_weight_gradient<Unit>(args.dq.as<float>(), args.dz.as<T>() + first * dz_columns,
                                          args.x.as<T>() + first * x_columns,
                                          std::min(rows_at_once, rows - first), dz_columns, x_columns,
                                          args.accumulate || first > 0);
        });
    });
}

}  // namespace train_qat
