// A matmul and what follows it on Hopper: when one kernel does both, and its launch. Product: hopper_product.cuh; what follows,
// and what it saves: hopper_epilogues.cuh.
#include "kernels/cuda/hopper_matmul/hopper_combined.h"

#include <stdexcept>
#include <string>

#include "kernels/cuda/hopper_matmul/hopper_epilogues.cuh"
#include "kernels/cuda/hopper_matmul/hopper_matmul.h"
#include "kernels/cuda/hopper_matmul/hopper_product.cuh"
#include "kernels/cuda/weights/weight_layout.h"

namespace train_qat::CU_BACKEND {

namespace {

// All outputs in bfloat16, of a dense weight, as tensor maps can take them.
bool takes(const MatmulForward& a) {
    return a.weight.codes == Grid::none && a.z.dtype == DType::bfloat16 &&
           hopper_product_refusal(a.z, a.x, dense_weight(a.weight), false).empty();
}

bool takes(const MatmulRopeForward& a) {
    const int64_t D = a.rope.shape.head_dim;
    return takes(a.matmul) && (D == 32 || D == 64 || D == 128) &&
           vector_aligned<2>(a.rope.cosines.as<float>()) && vector_aligned<2>(a.rope.sines.as<float>()) &&
           vector_aligned<2>(a.rope.column_scale.as<float>());
}

bool takes(const MatmulSwigluForward& a) {
    return takes(a.matmul) && a.swiglu.y.shape[1] % 8 == 0 && vector_aligned<8>(a.swiglu.y.as<bfloat16>()) &&
           vector_aligned<2>(a.swiglu.column_scale.as<float>());
}

template <typename Arguments>
void require_kernel(const Arguments& a) {
    if (!takes(a)) throw std::logic_error(std::string(a.name) + ": has no kernel for this");
}

template <typename Output>
void launch(Device& device, const MatmulForward& a, int tile_columns, const Output& output) {
    const ProductSize size{a.z.shape[0], a.z.shape[1], a.x.shape[1]};
    const int multiprocessors = device.properties().multiprocessors;
    if (tile_columns == 0)
        tile_columns = plan_product(size.rows, size.columns, size.inner, false, multiprocessors).tile_columns;
    with_product_tile(tile_columns, [&]<int columns, int stages>() {
        launch_hopper_product<HopperProduct<MatmulForm::nt, columns, stages, Output>>(
            device.stream(), multiprocessors, size, a.x.as<bfloat16>(), dense_weight(a.weight).as<bfloat16>(),
            output, 1);
    });
}

}  // namespace

bool combines(const Device& device, const MatmulRopeForward& a) {
    return device.options().gemm == DenseGemm::hopper && takes(a);
}

bool combines(const Device& device, const MatmulSwigluForward& a) {
    return device.options().gemm == DenseGemm::hopper && takes(a);
}

void hopper_matmul_rope_forward(Device& device, const MatmulRopeForward& a, int tile_columns) {
    require_kernel(a);
    const AttentionShape& shape = a.rope.shape;
    const auto with_head = [&]<int D>() {
        launch(device, a.matmul, tile_columns,
               RopeOutput<D>{
                   bfloat16_output(a.rope.qkv.as<bfloat16>(), a.rope.qkv.shape[0], a.rope.qkv.shape[1]),
                   a.rope.cosines.as<float>(), a.rope.sines.as<float>(), a.rope.column_scale.as<float>(),
                   static_cast<int>(shape.qkv_columns()),
                   static_cast<int>((shape.heads + shape.kv_heads) * D), static_cast<int>(shape.sequence)});
    };
    if (shape.head_dim == 32)
        with_head.template operator()<32>();
    else if (shape.head_dim == 64)
        with_head.template operator()<64>();
    else
        with_head.template operator()<128>();
}

void hopper_matmul_swiglu_forward(Device& device, const MatmulSwigluForward& a, int tile_columns) {
    require_kernel(a);
    const int64_t rows = a.swiglu.y.shape[0], columns = a.swiglu.y.shape[1];
    bfloat16* const gate_up = a.swiglu.gate_up.as<bfloat16>();
    launch(device, a.matmul, tile_columns,
           SwigluOutput{sum_map("the gate", gate_up, rows, columns, 2 * columns),
                        sum_map("up", gate_up + columns, rows, columns, 2 * columns),
                        sum_map("y", a.swiglu.y.as<bfloat16>(), rows, columns, columns),
                        a.swiglu.column_scale.as<float>(), static_cast<int>(columns)});
}

}  // namespace train_qat::CU_BACKEND
