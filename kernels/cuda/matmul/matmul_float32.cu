// Products of float32 matrices, in float32 arithmetic outside of the tensor cores, in all forms of dense_matmul.h: for
// reference runs.
//
// Floor: 2 * rows * columns * inner FLOP outside of the tensor cores. A block computes 64 x 64 of the product, a thread
// 4 x 4 of that. Slices of the operands, 16 of the inner dimension, lie in shared memory with the inner dimension across
// rows, two of each: one is multiplied while the next comes in through registers. Per number of the inner dimension a
// thread reads 2 vectors and does 16 multiplications. Sums are in the order of the inner dimension.
#include "kernels/cuda/matmul/dense_matmul.h"
#include "kernels/cuda/matmul/matmul_tiles.cuh"
#include "kernels/cuda/matmul/tile_matmul.cuh"

namespace train_qat::CU_BACKEND {

namespace {

constexpr int extent = 64, depth = 16, threads = 256;
constexpr int per_thread = 4;  // rows, and columns
constexpr int slice = extent * depth;

struct Float32Tile {
    static constexpr int rows = extent, columns = extent;
};

struct Float32Matrix {
    const float* data;
    int rows, columns;
    bool vectors;  // four neighbouring numbers are one access
};
Float32Matrix matrix_of(const Tensor& t) {
    return {t.as<float>(), static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]),
            vector_aligned<4>(t.as<float>(), t.shape[1])};
}

// Of an operand's element in its slice. The exclusive or spreads what a warp writes at once of a transposed
// slice (8 rows, 16 numbers each) over all banks; it keeps four neighbours together.
CU_DEVICE int slice_offset(int inner, int outer) {
    return inner * extent + (outer ^ inner / 4 * 8);
}

// One vector of a slice per thread.
template <Order order>
class Float32Operand {
  public:
    CU_DEVICE Float32Operand(const Float32Matrix& matrix, float* shared, int first)
        : matrix_(matrix), shared_(shared), first_(first) {}

    CU_DEVICE void fetch(int step) {
        const int row =
            order == Order::inner_along_rows ? first_ + thread_row() : step * depth + thread_row();
        const int column =
            order == Order::inner_along_rows ? step * depth + thread_column() : first_ + thread_column();
        next_ = {};
        if (row >= matrix_.rows) return;
        const float* from = matrix_.data + int64_t{row} * matrix_.columns + column;
        if (matrix_.vectors) {
            if (column < matrix_.columns) next_ = load_vector<4>(from);
            return;
        }
        CU_UNROLL
        for (int e = 0; e < 4; ++e)
            if (column + e < matrix_.columns) next_[e] = load(from + e);
    }
    CU_DEVICE void put(int step) {
        float* to = shared_ + step % 2 * slice;
        if constexpr (order == Order::outer_along_rows) {
            store_shared_vector<4>(to + slice_offset(thread_row(), thread_column()), next_);
        } else {
            CU_UNROLL
            for (int e = 0; e < 4; ++e)
                store_shared(to + slice_offset(thread_column() + e, thread_row()), next_[e]);
        }
    }
    CU_DEVICE Vector<float, 4> at(int step, int inner, int outer) const {
        return load_shared_vector<4>(shared_ + step % 2 * slice + slice_offset(inner, outer));
    }

  private:
    static constexpr int row_vectors = (order == Order::inner_along_rows ? depth : extent) / 4;
    static_assert(slice == 4 * threads);
    CU_DEVICE static int thread_row() { return static_cast<int>(threadIdx.x) / row_vectors; }
    CU_DEVICE static int thread_column() { return static_cast<int>(threadIdx.x) % row_vectors * 4; }

    const Float32Matrix& matrix_;
    float* shared_;
    int first_;
    Vector<float, 4> next_;
};

template <MatmulForm form>
__global__ void __launch_bounds__(threads)
    float32_matmul(Product out, Float32Matrix left_matrix, Float32Matrix right_matrix, int inner) {
    CU_SHARED(left_slices, Vector<float, 4>[2 * slice / 4]);
    CU_SHARED(right_slices, Vector<float, 4>[2 * slice / 4]);
    const TilePlace place = place_in_band(static_cast<int>(blockIdx.x), (out.rows + extent - 1) / extent,
                                          (out.columns + extent - 1) / extent);
    const int row = static_cast<int>(threadIdx.x) / (extent / per_thread) * per_thread;
    const int column = static_cast<int>(threadIdx.x) % (extent / per_thread) * per_thread;
    Float32Operand<left_order(form)> left(left_matrix, &left_slices[0][0], place.row * extent);
    Float32Operand<right_order(form)> right(right_matrix, &right_slices[0][0], place.column * extent);
    left.fetch(0);
    right.fetch(0);
    left.put(0);
    right.put(0);

    float sum[per_thread][per_thread] = {};
    const int steps = (inner + depth - 1) / depth;
    for (int step = 0; step < steps; ++step) {
        left.fetch(step + 1);
        right.fetch(step + 1);
        block_sync();
        CU_UNROLL
        for (int k = 0; k < depth; ++k) {
            const Vector<float, 4> a = left.at(step, k, row), b = right.at(step, k, column);
            CU_UNROLL
            for (int i = 0; i < per_thread; ++i) {
                CU_UNROLL
                for (int j = 0; j < per_thread; ++j) sum[i][j] += a[i] * b[j];
            }
        }
        left.put(step + 1);
        right.put(step + 1);
    }
    const int first_column = place.column * extent + column;
    CU_UNROLL
    for (int i = 0; i < per_thread; ++i) {
        const int64_t r = place.row * extent + row + i;
        if (r < out.rows)
            store_four(static_cast<float*>(out.data) + r * out.columns + first_column,
                       Vector<float, 4>{sum[i][0], sum[i][1], sum[i][2], sum[i][3]},
                       out.columns - first_column, out.vectors, out.accumulate);
    }
}

template <MatmulForm form>
void multiply(CuStream stream, const Product& out, const Tensor& a, const Tensor& b) {
    CU_LAUNCH(float32_matmul<form>, dim3(checked_tiles<Float32Tile>(out)), dim3(threads), 0, stream, out,
              matrix_of(a), matrix_of(b), inner_extent(form, a));
}

}  // namespace

void matmul_float32(CuStream stream, MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                    bool accumulate) {
    if (out.dtype != DType::float32) throw std::logic_error("matmul_float32: out must be float32");
    const Product product = product_of(out, accumulate);
    if (form == MatmulForm::nt)
        multiply<MatmulForm::nt>(stream, product, a, b);
    else if (form == MatmulForm::nn)
        multiply<MatmulForm::nn>(stream, product, a, b);
    else
        multiply<MatmulForm::tn>(stream, product, a, b);
}

}  // namespace train_qat::CU_BACKEND
