// SwiGLU (arXiv 2002.05202): y = silu(gate) * up with silu(x) = x σ(x), σ(x) = 1 / (1 + e^-x).
// Backward: d_up = dy silu(gate);  d_gate = dy up σ (1 + gate (1 - σ)).
//
// Bound by memory: forward reads gate and up and writes y, 3 M F elements; backward reads gate, up and dy and
// writes d_gate and d_up, 5 M F. column_scale is read once in `tile_rows` rows.
#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/rows/row_tile.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 16;
constexpr int most_threads = 256;
// Rows whose loads a thread issues before it computes: in place, the compiler cannot move a load above a
// store.
constexpr int in_flight = 2;

// Block (x, y): rows tile_rows * x ..., columns width * blockDim * y ... of each half.
template <typename T, int width>
__global__ void __launch_bounds__(most_threads)
    swiglu_rows(T* y, const T* gate_up, const float* column_scale, int64_t rows, int64_t columns) {
    const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * width;
    if (column >= columns) return;
    const float* scales = column_scale != nullptr ? column_scale + column : nullptr;
    float gate_scale[width], up_scale[width];
    load_scale(gate_scale, scales);
    load_scale(up_scale, scales != nullptr ? scales + columns : nullptr);
    const int64_t tile = int64_t{blockIdx.x} * tile_rows;
    for (int row = 0; row < tile_rows; row += in_flight) {
        Vector<T, width> gate[in_flight], up[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const T* in = gate_up + (tile + row + i) * 2 * columns + column;
            if (tile + row + i >= rows) continue;
            gate[i] = load_vector<width>(in);
            up[i] = load_vector<width>(in + columns);
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (tile + row + i >= rows) return;
            Vector<T, width> out;
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float g = gate_scale[j] * static_cast<float>(gate[i][j]);
                const float u = up_scale[j] * static_cast<float>(up[i][j]);
                out[j] = static_cast<T>(g / (1.0f + expf(-g)) * u);
            }
            store_vector<width>(y + (tile + row + i) * columns + column, out);
        }
    }
}

// Every thread reads its columns of a row before it writes them: in place is safe.
template <typename T, int width>
__global__ void __launch_bounds__(most_threads)
    swiglu_gradient_rows(T* d_gate_up, const T* dy, const T* gate_up, const float* column_scale, int64_t rows,
                         int64_t columns) {
    const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * width;
    if (column >= columns) return;
    const float* scales = column_scale != nullptr ? column_scale + column : nullptr;
    float gate_scale[width], up_scale[width];
    load_scale(gate_scale, scales);
    load_scale(up_scale, scales != nullptr ? scales + columns : nullptr);
    const int64_t tile = int64_t{blockIdx.x} * tile_rows;
    for (int row = 0; row < tile_rows; row += in_flight) {
        Vector<T, width> gate[in_flight], up[in_flight], gradient[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            const int64_t m = tile + row + i;
            if (m >= rows) continue;
            gate[i] = load_vector<width>(gate_up + m * 2 * columns + column);
            up[i] = load_vector<width>(gate_up + m * 2 * columns + columns + column);
            gradient[i] = load_vector<width>(dy + m * columns + column);
        }
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (tile + row + i >= rows) return;
            Vector<T, width> d_gate, d_up;
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float g = gate_scale[j] * static_cast<float>(gate[i][j]);
                const float u = up_scale[j] * static_cast<float>(up[i][j]);
                const float d = static_cast<float>(gradient[i][j]);
                const float sigmoid = 1.0f / (1.0f + expf(-g));
                d_gate[j] = static_cast<T>(d * u * sigmoid * (1.0f + g * (1.0f - sigmoid)) * gate_scale[j]);
                d_up[j] = static_cast<T>(d * g * sigmoid * up_scale[j]);
            }
            T* out = d_gate_up + (tile + row + i) * 2 * columns + column;
            store_vector<width>(out, d_gate);
            store_vector<width>(out + columns, d_up);
        }
    }
}

// Rows in x: a grid has 2^31 blocks there and 65535 in y.
template <int width>
dim3 grid_of(int64_t rows, int64_t columns, unsigned threads) {
    return dim3(blocks_for(rows, tile_rows), blocks_for(columns, int64_t{threads} * width));
}

}  // namespace

void CudaBackend::swiglu_forward(const Tensor& y, const Tensor& gate_up, const Tensor& column_scale) {
    const int64_t rows = y.shape[0], columns = y.shape[1];
    check_tensor("swiglu_forward", "y", y, y.dtype, {rows, columns});
    check_tensor("swiglu_forward", "gate_up", gate_up, y.dtype, {rows, 2 * columns});
    check_optional("swiglu_forward", "column_scale", column_scale, DType::float32, {2 * columns});
    with_compute_type("swiglu_forward", y.dtype, [&]<typename T>() {
        constexpr int wide = 16 / sizeof(T);
        const bool aligned = rows_aligned<wide>(columns, y.as<T>(), gate_up.as<T>()) &&
                             vector_aligned<4>(column_scale.as<float>());
        with_width<wide>(aligned, [&]<int width>() {
            const unsigned threads = balanced_threads((columns + width - 1) / width, most_threads);
            CU_LAUNCH((swiglu_rows<T, width>), grid_of<width>(rows, columns, threads), threads, 0, stream(),
                      y.as<T>(), gate_up.as<T>(), column_scale.as<float>(), rows, columns);
        });
    });
}

void CudaBackend::swiglu_backward(const Tensor& d_gate_up, const Tensor& dy, const Tensor& gate_up,
                                  const Tensor& column_scale) {
    const int64_t rows = dy.shape[0], columns = dy.shape[1];
    check_tensor("swiglu_backward", "dy", dy, dy.dtype, {rows, columns});
    check_tensor("swiglu_backward", "gate_up", gate_up, dy.dtype, {rows, 2 * columns});
    check_tensor("swiglu_backward", "d_gate_up", d_gate_up, dy.dtype, {rows, 2 * columns});
    check_optional("swiglu_backward", "column_scale", column_scale, DType::float32, {2 * columns});
    with_compute_type("swiglu_backward", dy.dtype, [&]<typename T>() {
        constexpr int wide = 16 / sizeof(T);
        const bool aligned = rows_aligned<wide>(columns, dy.as<T>(), gate_up.as<T>(), d_gate_up.as<T>()) &&
                             vector_aligned<4>(column_scale.as<float>());
        with_width<wide>(aligned, [&]<int width>() {
            const unsigned threads = balanced_threads((columns + width - 1) / width, most_threads);
            CU_LAUNCH((swiglu_gradient_rows<T, width>), grid_of<width>(rows, columns, threads), threads, 0,
                      stream(), d_gate_up.as<T>(), dy.as<T>(), gate_up.as<T>(), column_scale.as<float>(),
                      rows, columns);
        });
    });
}

}  // namespace train_qat::CU_BACKEND
