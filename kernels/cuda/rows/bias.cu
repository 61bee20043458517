// The bias of a linear layer, with the layer's scales, and its gradient:
//     forward:   z = column_scale ∘ z + bias
//     backward:  dbias (+)= sum_m dz, then dz = column_scale ∘ dz
//
// Floor: z or dz read and written, once; dz without scales only read. A thread owns neighbouring columns, one access, for
// a tile of rows: it reads their scales and biases once and keeps their sums in registers. The tiles' parts of dbias are
// summed by a second kernel: column_sums.h.
#include "kernels/checks.h"
#include "kernels/cuda/rows/column_sums.h"
#include "kernels/cuda/rows/row_tile.cuh"
#include "kernels/cuda/rows/rows.h"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int tile_rows = 16;  // of the forward pass
constexpr int most_threads = 256;
// Rows whose loads a thread issues before it stores: nothing moves a load above a store.
constexpr int in_flight = 4;

// Block (x, y): rows tile_rows * x ..., columns width * blockDim * y ...
template <typename T, int width>
__global__ void __launch_bounds__(most_threads)
    add_bias(T* z, const float* column_scale, const float* bias, int64_t rows, int64_t columns) {
    const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * width;
    if (column >= columns) return;
    float scale[width], offset[width];
    load_scale(scale, column_scale != nullptr ? column_scale + column : nullptr);
    load_scale(offset, bias + column);
    const int64_t tile = int64_t{blockIdx.x} * tile_rows;
    for (int row = 0; row < tile_rows; row += in_flight) {
        T* here = z + (tile + row) * columns + column;
        Vector<T, width> values[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i)
            if (tile + row + i < rows) values[i] = load_vector<width>(here + i * columns);
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (tile + row + i >= rows) return;
            CU_UNROLL
            for (int j = 0; j < width; ++j)
                values[i][j] = static_cast<T>(scale[j] * static_cast<float>(values[i][j]) + offset[j]);
            store_vector<width>(here + i * columns, values[i]);
        }
    }
}

// Block (x, y): rows tile * x ..., columns as above. partials: (tiles, columns).
template <typename T, int width>
__global__ void __launch_bounds__(most_threads)
    sum_gradients(float* partials, T* dz, const float* column_scale, int64_t rows, int64_t columns,
                  int tile) {
    const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * width;
    if (column >= columns) return;
    float scale[width], sum[width] = {};
    load_scale(scale, column_scale != nullptr ? column_scale + column : nullptr);
    const int64_t first = int64_t{blockIdx.x} * tile;
    const int count = rows - first < tile ? static_cast<int>(rows - first) : tile;
    for (int row = 0; row < count; row += in_flight) {
        T* here = dz + (first + row) * columns + column;
        Vector<T, width> values[in_flight];
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i)
            if (row + i < count) values[i] = load_vector<width>(here + i * columns);
        CU_UNROLL
        for (int i = 0; i < in_flight; ++i) {
            if (row + i >= count) break;
            CU_UNROLL
            for (int j = 0; j < width; ++j) {
                const float d = static_cast<float>(values[i][j]);
                sum[j] += d;
                values[i][j] = static_cast<T>(scale[j] * d);
            }
            if (column_scale != nullptr) store_vector<width>(here + i * columns, values[i]);
        }
    }
    store_floats(partials + int64_t{blockIdx.x} * columns + column, sum);
}

// Calls launch.template operator()<T, width>(threads, blocks over the columns).
template <typename Launch, typename... Addresses>
void with_columns(const char* operation, const Tensor& rows, Launch&& launch,
                  const Addresses*... of_columns) {
    const int64_t columns = rows.shape[1];
    with_compute_type(operation, rows.dtype, [&]<typename T>() {
        constexpr int wide = 16 / sizeof(T);
        const bool aligned =
            rows_aligned<wide>(columns, rows.as<T>()) && (vector_aligned<4>(of_columns) && ...);
        with_width<wide>(aligned, [&]<int width>() {
            const int64_t vectors = (columns + width - 1) / width;
            const unsigned threads = balanced_threads(vectors, most_threads);
            launch.template operator()<T, width>(threads, blocks_for(vectors, threads));
        });
    });
}

}  // namespace

void bias_forward(Device& device, const BiasForward& a) {
    const int64_t rows = a.z.shape[0], columns = a.z.shape[1];
    const float *scale = a.column_scale.as<float>(), *bias = a.bias.as<float>();
    with_columns(
        a.name, a.z,
        [&]<typename T, int width>(unsigned threads, unsigned column_blocks) {
            CU_LAUNCH((add_bias<T, width>), dim3(blocks_for(rows, tile_rows), column_blocks), threads, 0,
                      device.stream(), a.z.as<T>(), scale, bias, rows, columns);
        },
        scale, bias);
}

int64_t bias_backward_workspace(int64_t rows, int64_t columns) {
    return partial_sum_bytes(rows, columns);
}

void bias_backward(Device& device, const BiasBackward& a) {
    const int64_t rows = a.dz.shape[0], columns = a.dz.shape[1];
    const int64_t tile = summed_rows(rows), tiles = blocks_for(rows, tile);
    const float* scale = a.column_scale.as<float>();
    float* partials = static_cast<float*>(a.workspace);
    with_columns(
        a.name, a.dz,
        [&]<typename T, int width>(unsigned threads, unsigned column_blocks) {
            CU_LAUNCH((sum_gradients<T, width>), dim3(static_cast<unsigned>(tiles), column_blocks), threads,
                      0, device.stream(), partials, a.dz.as<T>(), scale, rows, columns,
                      static_cast<int>(tile));
        },
        scale, partials);
    sum_partials(device, a.dbias.as<float>(), partials, tiles, columns, a.accumulate);
}

}  // namespace train_qat::CU_BACKEND
