// The matmuls of linear layers with weights that were packed once per optimizer step: y = x qᵀ and dx = dz q.
//
// A task is up to 192 rows and 512 columns: its rows on the left stay in a core's second-level cache while one panel of
// the weight after the other passes through the first. Sums longer than 1,024 numbers (512 in float32) are taken in
// blocks of so many, so that these caches hold a block of either operand. Which task computes an element, and on which
// thread, does not change its sum.
#include <chrono>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul_unit.h"
#include "kernels/cpu/products/packed_weight.h"

namespace train_qat {

namespace {

constexpr int64_t most_rows_of_task = 192, least_rows_of_task = 32;
constexpr int64_t panels_of_task = 8;
constexpr int64_t steps_of_block = 512;

// out (rows, columns) = x (rows, inner) times panels.
template <typename T, typename Out>
struct PackedProduct {
    Out* out;
    const T* x;
    const ElementOf<T>* panels;
    int64_t rows, inner, columns;
};

// The part of a product that a task computes.
struct TaskRange {
    int64_t first_row, rows, first_panel, panels;
    int64_t first_column() const { return first_panel * panel_columns; }
};

// What a task keeps in its thread's memory: a padded copy of its rows on the left, and sums between blocks.
struct TaskMemory {
    int64_t padded_rows, padded_inner, sum_columns;
    int64_t left_floats(int64_t element) const {
        return round_up(padded_rows * padded_inner * element / int64_t{sizeof(float)}, vector_lanes);
    }
    int64_t floats(int64_t element) const { return left_floats(element) + padded_rows * sum_columns; }
};

// x's rows of a task, with zeros up to the next whole step and the next whole block of rows: from x itself where
// nothing is missing, else from a copy.
template <typename T, typename Out>
const T* padded_left(const PackedProduct<T, Out>& product, const TaskRange& task, const TaskMemory& memory,
                     T* copy) {
    const T* const rows = product.x + task.first_row * product.inner;
    if (memory.padded_inner == product.inner && memory.padded_rows == task.rows) return rows;
    const auto bytes = [](int64_t numbers) { return static_cast<size_t>(numbers) * sizeof(T); };
    for (int64_t row = 0; row < memory.padded_rows; ++row) {
        T* const to = copy + row * memory.padded_inner;
        const int64_t kept = row < task.rows ? product.inner : 0;
        std::memcpy(static_cast<void*>(to), rows + row * product.inner, bytes(kept));
        std::memset(static_cast<void*>(to + kept), 0, bytes(memory.padded_inner - kept));
    }
    return copy;
}

template <typename Unit, typename T, typename Out>
void run_task(const PackedProduct<T, Out>& product, const TaskRange& task, const TaskMemory& memory,
              float* scratch) {
    using Element = ElementOf<T>;
    const int64_t stride = memory.padded_inner / element_width<Element>, steps = stride;
    const int64_t panel_elements = PanelLayout{dtype_of<T>, product.inner, product.columns}.panel_elements();
    const Element* const left =
        reinterpret_cast<const Element*>(padded_left(product, task, memory, reinterpret_cast<T*>(scratch)));
    const ProductRows<Out> out = ProductRows<Out>{product.out, product.columns, product.columns}.from(
        task.first_row, task.first_column());
    const auto panel = [&](int64_t i) { return product.panels + (task.first_panel + i) * panel_elements; };
    if (memory.sum_columns == 0) {
        for (int64_t i = 0; i < task.panels; ++i)
            Unit::multiply_rows(out.from(0, i * panel_columns), left, stride, panel(i), task.rows, steps,
                                false);
        return;
    }
    float* const sums = scratch + memory.left_floats(sizeof(T));
    const ProductRows<float> sum_rows{sums, memory.sum_columns, memory.sum_columns};
    for (int64_t first = 0; first < steps; first += steps_of_block)
        for (int64_t i = 0; i < task.panels; ++i)
            Unit::multiply_rows(sum_rows.from(0, i * panel_columns), left + first, stride,
                                panel(i) + first * panel_columns, task.rows,
                                std::min(steps_of_block, steps - first), first > 0);
    const int64_t columns = std::min(out.columns, task.panels * panel_columns);
    for (int64_t row = 0; row < task.rows; ++row) {
        Out* __restrict to = out.data + row * out.stride;
        const float* __restrict from = sums + row * memory.sum_columns;
        for (int64_t column = 0; column < columns; ++column) to[column] = from[column];
    }
}

// Rows of a task: so many that all threads have about the same to do; a task costs about what four rows of it do.
int64_t rows_of_task(int64_t rows, int64_t column_tasks, int threads, int64_t granule) {
    int64_t best = most_rows_of_task, least = std::numeric_limits<int64_t>::max();
    for (int64_t candidate = most_rows_of_task; candidate >= least_rows_of_task; candidate -= granule) {
        const int64_t tasks = (rows + candidate - 1) / candidate * column_tasks;
        const int64_t cost = (tasks + threads - 1) / threads * (candidate + 4);
        if (cost < least) best = candidate, least = cost;
    }
    return best;
}

}  // namespace

int64_t CpuBackend::compute_weight_bytes(int64_t rows, int64_t columns, DType compute_type,
                                         bool embedding) const {
    return packed_weight_bytes(rows, columns, compute_type, embedding);
}

template <typename T, typename Out>
void CpuBackend::multiply_packed(Out* out, const T* x, const void* panels, int64_t rows, int64_t inner,
                                 int64_t columns) {
    const PackedProduct<T, Out> product{out,  x,     static_cast<const ElementOf<T>*>(panels),
                                        rows, inner, columns};
    const int64_t all_panels = PanelLayout{dtype_of<T>, inner, columns}.panels();
    const int64_t column_tasks = (all_panels + panels_of_task - 1) / panels_of_task;
    with_matmul_unit<T>([&]<typename Unit>() {
        const int64_t task_rows =
            rows_of_task(rows, column_tasks, threads_, std::max<int64_t>(2, Unit::rows_at_a_time));
        const int64_t row_tasks = (rows + task_rows - 1) / task_rows;
        parallel_for(row_tasks * column_tasks, 1, [&](int64_t index, int64_t) {
            TaskRange task;
            task.first_row = index / column_tasks * task_rows;
            task.rows = std::min(task_rows, rows - task.first_row);
            task.first_panel = index % column_tasks * panels_of_task;
            task.panels = std::min(panels_of_task, all_panels - task.first_panel);
            TaskMemory memory;
            memory.padded_rows = round_up(task.rows, Unit::rows_at_a_time);
            memory.padded_inner = round_up(inner, Unit::inner_at_a_time);
            const bool one_block =
                memory.padded_inner / element_width<ElementOf<T>> <= steps_of_block * 3 / 2;
            memory.sum_columns = one_block ? 0 : task.panels * panel_columns;
            run_task<Unit>(product, task, memory, thread_scratch(memory.floats(sizeof(T))));
        });
    });
}

void CpuBackend::compute(const MatmulForward& args) {
    const PackedWeight packed = packed_weight(args.weight);
    with_compute_type(args.name, args.x.dtype, [&]<typename T>() {
        const auto multiply = [&]<typename Out>() {
            multiply_packed(args.z.as<Out>(), args.x.as<T>(), packed.forward, args.x.shape[0],
                            args.weight.columns, args.weight.rows);
        };
        if (args.z.dtype == DType::float32)
            multiply.template operator()<float>();
        else
            multiply.template operator()<bfloat16>();
    });
}

void CpuBackend::compute(const MatmulInputGradient& args) {
    const PackedWeight packed = packed_weight(args.weight);
    with_compute_type(args.name, args.dz.dtype, [&]<typename T>() {
        multiply_packed(args.dx.as<T>(), args.dz.as<T>(), packed.backward, args.dz.shape[0], args.weight.rows,
                        args.weight.columns);
    });
}

double CpuBackend::peak_flops(DType compute_type) {
    double& peak = compute_type == DType::bfloat16 ? peak_bfloat16_ : peak_float32_;
    if (peak > 0) return peak;
    // The best of several runs of a product whose operands fit into the second-level caches: what the cores can do when
    // nothing else is in the way.
    constexpr int64_t rows = 768, inner = 512, columns = 1024;
    with_compute_type("peak_flops", compute_type, [&]<typename T>() {
        std::vector<T> x(rows * inner), y(rows * columns);
        AlignedMemory panels;
        float* const zeros = panels.at_least(PanelLayout{compute_type, inner, columns}.bytes() / 4);
        std::fill(zeros, zeros + PanelLayout{compute_type, inner, columns}.bytes() / 4, 0.0f);
        using Clock = std::chrono::steady_clock;
        for (int repetition = 0; repetition < 40; ++repetition) {
            const Clock::time_point start = Clock::now();
            multiply_packed(y.data(), x.data(), zeros, rows, inner, columns);
            const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
            peak = std::max(peak, 2.0 * rows * inner * columns / seconds);
        }
    });
    return peak;
}

}  // namespace train_qat
