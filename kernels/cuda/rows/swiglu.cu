// SwiGLU (arXiv 2002.05202), with silu(x) = x σ(x) and σ(x) = 1 / (1 + e^-x):
//     forward:   y = silu(gate) * up
//     backward:  d_up = dy silu(gate)
//                d_gate = dy up σ(gate) (1 + gate (1 - σ(gate)))
//
// Floor: forward reads gate and up and writes y, 3 M F elements; backward reads gate, up and dy and writes d_gate and
// d_up, 5 M F. A thread owns neighbouring columns, one access, for `tile_rows` rows, and reads their column_scale once.
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 16;
constexpr int most_threads = 256;
// Rows whose loads a thread issues before it computes: in place, the compiler cannot move a load above a store.
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

// Every thread reads its columns of a row before it writes them: in place is safe. Three blocks on a multiprocessor:
// without that demand the compiler saves registers until it spills them.
template <typename T, int width>
__global__ void __launch_bounds__(most_threads, 3)
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

void swiglu_forward(Device& device, const SwigluForward& a) {
    const int64_t rows = a.y.shape[0], columns = a.y.shape[1];
    with_compute_type(a.name, a.y.dtype, [&]<typename T>() {
        constexpr int wide = 16 / sizeof(T);
        const bool aligned = rows_aligned<wide>(columns, a.y.as<T>(), a.gate_up.as<T>()) &&
                             vector_aligned<4>(a.column_scale.as<float>());
        with_width<wide>(aligned, [&]<int width>() {
            const unsigned threads = balanced_threads((columns + width - 1) / width, most_threads);
            CU_LAUNCH((swiglu_rows<T, width>), grid_of<width>(rows, columns, threads), threads, 0,
                      device.stream(), a.y.as<T>(), a.gate_up.as<T>(), a.column_scale.as<float>(), rows,
                      columns);
        });
    });
}

void swiglu_backward(Device& device, const SwigluBackward& a) {
    const int64_t rows = a.dy.shape[0], columns = a.dy.shape[1];
    with_compute_type(a.name, a.dy.dtype, [&]<typename T>() {
        constexpr int wide = 16 / sizeof(T);
        const bool aligned =
            rows_aligned<wide>(columns, a.dy.as<T>(), a.gate_up.as<T>(), a.d_gate_up.as<T>()) &&
            vector_aligned<4>(a.column_scale.as<float>());
        with_width<wide>(aligned, [&]<int width>() {
            const unsigned threads = balanced_threads((columns + width - 1) / width, most_threads);
            CU_LAUNCH((swiglu_gradient_rows<T, width>), grid_of<width>(rows, columns, threads), threads, 0,
                      device.stream(), a.d_gate_up.as<T>(), a.dy.as<T>(), a.gate_up.as<T>(),
                      a.column_scale.as<float>(), rows, columns);
        });
    });
}

}  // namespace train_qat::CU_BACKEND
