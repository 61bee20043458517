// The straight-through estimator's backward pass and the gradient norm, once per optimizer step. With dq, the
// gradient with respect to the levels, w, s and r = w / s,
//     dŵ             = dq / s            one scale per row; otherwise dq is dŵ already
//     gradient       = inside(r) ? dŵ : 0
//     scale_gradient = g * sum over the group of dŵ * scale_gradient(r)
//     squares        = sum of the squares of both
//
// Floor: weights read, gradients read and written, once. Each row block leaves one partial sum of squares, which a
// second kernel adds up for each parameter; sums are in double and in fixed order.
#include "kernels/cuda/weights/weight_update.cuh"
#include "kernels/cuda/weights/weights.h"

namespace train_qat::CU_BACKEND {

namespace {

// This thread's share of the squares of a parameter without scales.
template <int width>
CU_DEVICE double squares_of_gradient(const UpdateParameter& p, const RowBlock& block) {
    const float* const gradient = p.gradient + static_cast<int64_t>(block.first_row) * p.columns;
    const int64_t count = static_cast<int64_t>(block.rows) * p.columns;
    double squares = 0;
    for (int64_t i = threadIdx.x * width; i < count; i += update_threads * width) {
        const Vector<float, width> g = load_vector<width>(gradient + i);
        CU_UNROLL
        for (int j = 0; j < width; ++j) squares += static_cast<double>(g[j]) * g[j];
    }
    return squares;
}

// The backward pass of all groups of a row block; returns this thread's share of the squares.
template <Grid grid, int width, typename Master>
CU_DEVICE double backward_groups(const UpdateParameter& p, const RowBlock& block) {
    using Traits = GridTraits<grid>;
    double squares = 0;
    for_each_group<width>(p, block, [&](const Group& group) {
        const float scale = group.exists ? effective_scale(load(p.scale + group.index)) : 1.0f;
        const float to_weight_gradient = p.groups == 1 ? 1.0f / scale : 1.0f;
        double scale_sum = 0;
        for (int k = group.exists ? group.first : p.group; k < p.group; k += group.stride) {
            const Vector<float, width> w = load_weights<width, Master>(p, group.element + k);
            Vector<float, width> g = load_vector<width>(p.gradient + group.element + k);
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float ratio = w[j] / scale, d = g[j] * to_weight_gradient;
                g[j] = Traits::inside(ratio) ? d : 0.0f;
                squares += static_cast<double>(g[j]) * g[j];
                scale_sum += static_cast<double>(d * Traits::scale_gradient(ratio));
            }
            store_vector(p.gradient + group.element + k, g);
        }
        scale_sum = team_sum(scale_sum, p.lanes_per_group);
        if (!group.leads) return;
        const float scale_gradient = static_cast<float>(scale_sum * p.scale_gradient_factor);
        store(p.scale_gradient + group.index, scale_gradient);
        squares += static_cast<double>(scale_gradient) * scale_gradient;
    });
    return squares;
}

// partial_squares: (row blocks)
__global__ void __launch_bounds__(update_threads)
    ste_backward_kernel(double* partial_squares, const UpdateTables tables) {
    CU_SHARED(scratch, double[update_warps]);
    const RowBlock block = load(tables.row_blocks + blockIdx.x);
    const UpdateParameter p = load(tables.parameters + block.parameter);
    double squares = 0;
    with_types(p, [&]<Grid grid, int width, typename Master>() {
        if constexpr (grid == Grid::none)
            squares = squares_of_gradient<width>(p, block);
        else
            squares = backward_groups<grid, width, Master>(p, block);
    });
    squares = block_sum<update_threads>(squares, scratch);
    if (threadIdx.x == 0) store(partial_squares + blockIdx.x, squares);
}

// Block i: squares[i], the sum over the row blocks of parameter i.
__global__ void __launch_bounds__(update_threads)
    sum_squares_kernel(float* squares, const double* partial_squares, const UpdateTables tables) {
    CU_SHARED(scratch, double[update_warps]);
    const UpdateParameter p = load(tables.parameters + blockIdx.x);
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < p.blocks; i += update_threads)
        sum += load(partial_squares + p.first_block + i);
    sum = block_sum<update_threads>(sum, scratch);
    if (threadIdx.x == 0) store(squares + blockIdx.x, static_cast<float>(sum));
}

}  // namespace

void ste_backward_and_norm(Device& device, WeightTables& tables, const SteBackwardAndNorm& arguments) {
    if (arguments.parameters.empty()) return;
    const UpdateTables uploaded = tables.by_groups(arguments.parameters);
    auto* const partial_squares =
        static_cast<double*>(device.scratch(uploaded.block_count * static_cast<int64_t>(sizeof(double))));
    CU_LAUNCH(ste_backward_kernel, static_cast<unsigned>(uploaded.block_count), update_threads, 0,
              device.stream(), partial_squares, uploaded);
    CU_LAUNCH(sum_squares_kernel, static_cast<unsigned>(uploaded.parameter_count), update_threads, 0,
              device.stream(), arguments.squares.as<float>(), partial_squares, uploaded);
}

}  // namespace train_qat::CU_BACKEND
