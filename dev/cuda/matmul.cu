// The matmul of a linear layer, z = x qᵀ, and its two gradients, dx = dz q and dq = dzᵀ x, in bfloat16 with
// float32 sums.
//
//   forward
//     1 one thread per output           reads a row of x and of q for each output
//     2 a tile per block, float32       64 x 64 outputs share what they read, 4 x 4 in a thread's registers
//     3 a tile per warp, tensor cores   the same tiles, multiplied by mma; copies and products take turns
//     4 matmul_bfloat16.cu              copies and products overlap
//     5 cuBLASLt
//   the gradients likewise, from 4 on
//
// 2 MNK operations: at these sizes the limit of every card is its tensor cores, not its memory.
#include <algorithm>

#include "dev/cuda/matmul_problem.h"

namespace train_qat::CU_BACKEND {

namespace {

struct Extents {
    int rows, outputs, inputs;  // M, N, K
};

// ---- 1: one thread per output

// Neighbouring threads have neighbouring outputs, so they read the same row of x but 32 different rows of q.
__global__ void one_thread_per_output(bfloat16* z, const bfloat16* x, const bfloat16* q, Extents e) {
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= int64_t{e.rows} * e.outputs) return;
    const int64_t m = index / e.outputs, n = index % e.outputs;
    float sum = 0;
    for (int k = 0; k < e.inputs; ++k)
        sum +=
            static_cast<float>(load(x + m * e.inputs + k)) * static_cast<float>(load(q + n * e.inputs + k));
    store(z + index, static_cast<bfloat16>(sum));
}

// ---- 2: a tile per block

constexpr int tile = 64;       // outputs of a block: tile x tile
constexpr int slice = 16;      // of K at a time
constexpr int per_thread = 4;  // outputs of a thread: per_thread x per_thread
constexpr int tile_threads = (tile / per_thread) * (tile / per_thread);
constexpr int tile_pitch = tile + 4;  // fewer bank conflicts while writing, vectors of 4 while reading

// Rows [first, first + tile) and columns [k, k + slice) of a matrix, transposed, with zeros outside of it.
CU_DEVICE void copy_transposed(float* shared, const bfloat16* matrix, int first, int rows, int k,
                               int columns) {
    for (int i = static_cast<int>(threadIdx.x); i < tile * slice; i += tile_threads) {
        const int row = i / slice, column = i % slice;
        const bool inside = first + row < rows && k + column < columns;
        const int64_t element = int64_t{first + row} * columns + k + column;
        store_shared(shared + column * tile_pitch + row,
                     inside ? static_cast<float>(load(matrix + element)) : 0.0f);
    }
}

__global__ void __launch_bounds__(tile_threads)
    tile_per_block(bfloat16* z, const bfloat16* x, const bfloat16* q, Extents e) {
    CU_SHARED(x_vectors, Vector<float, per_thread>[slice * tile_pitch / per_thread]);  // aligned for vectors
    CU_SHARED(q_vectors, Vector<float, per_thread>[slice * tile_pitch / per_thread]);
    float *const x_tile = &x_vectors[0][0], *const q_tile = &q_vectors[0][0];
    const int first_row = static_cast<int>(blockIdx.y) * tile,
              first_output = static_cast<int>(blockIdx.x) * tile;
    const int row = static_cast<int>(threadIdx.x) / (tile / per_thread) * per_thread;
    const int column = static_cast<int>(threadIdx.x) % (tile / per_thread) * per_thread;
    float sum[per_thread][per_thread] = {};
    for (int k = 0; k < e.inputs; k += slice) {
        copy_transposed(x_tile, x, first_row, e.rows, k, e.inputs);
        copy_transposed(q_tile, q, first_output, e.outputs, k, e.inputs);
        block_sync();
        CU_UNROLL
        for (int i = 0; i < slice; ++i) {
            const Vector<float, per_thread> a = load_shared_vector<per_thread>(x_tile + i * tile_pitch + row);
            const Vector<float, per_thread> b =
                load_shared_vector<per_thread>(q_tile + i * tile_pitch + column);
            CU_UNROLL
            for (int r = 0; r < per_thread; ++r) {
                CU_UNROLL
                for (int c = 0; c < per_thread; ++c) sum[r][c] += a[r] * b[c];
            }
        }
        block_sync();
    }
    for (int r = 0; r < per_thread; ++r) {
        for (int c = 0; c < per_thread; ++c) {
            const int m = first_row + row + r, n = first_output + column + c;
            if (m < e.rows && n < e.outputs)
                store(z + int64_t{m} * e.outputs + n, static_cast<bfloat16>(sum[r][c]));
        }
    }
}

// ---- 3: a tile per warp, on tensor cores

constexpr int warp_tile = 32;  // outputs of a warp: warp_tile x warp_tile; four warps are a block
constexpr int warp_threads = 4 * 32;
constexpr int warp_slice = 32;              // of K at a time: two steps of mma
constexpr int warp_pitch = warp_slice + 8;  // rows 80 bytes apart: ldmatrix without bank conflicts

// Rows [first, first + tile) and columns [k, k + warp_slice) in accesses of `width` numbers, zeros outside.
template <int width>
CU_DEVICE void copy_tile(bfloat16* shared, const bfloat16* matrix, int first, int rows, int k, int columns) {
    constexpr int per_row = warp_slice / width;
    CU_UNROLL
    for (int i = static_cast<int>(threadIdx.x); i < tile * per_row; i += warp_threads) {
        const int row = i / per_row, column = i % per_row * width;
        Vector<bfloat16, width> part = {};
        if (first + row < rows && k + column < columns)
            part = load_vector<width>(matrix + int64_t{first + row} * columns + k + column);
        store_shared_vector<width>(shared + row * warp_pitch + column, part);
    }
}

// sum += the warp's rows of x times the warp's rows of q, over one slice.
CU_DEVICE void multiply_slice(float (&sum)[2][4][4], const bfloat16* x_rows, const bfloat16* q_rows) {
    const int lane = lane_index();
    CU_UNROLL
    for (int k = 0; k < warp_slice; k += 16) {
        uint32_t a[2][4], b[4][2];
        CU_UNROLL
        for (int i = 0; i < 2; ++i)
            ldmatrix_x4(a[i], x_rows + (16 * i + lane % 16) * warp_pitch + k + lane / 16 * 8);
        CU_UNROLL
        for (int j = 0; j < 4; j += 2) {
            uint32_t two[4];
            ldmatrix_x4(two, q_rows + (8 * j + lane / 16 * 8 + lane % 8) * warp_pitch + k + lane / 8 % 2 * 8);
            b[j][0] = two[0];
            b[j][1] = two[1];
            b[j + 1][0] = two[2];
            b[j + 1][1] = two[3];
        }
        mma_tile<warp_tile, warp_tile>(sum, a, b);
    }
}

template <int width>
__global__ void __launch_bounds__(warp_threads)
    tile_per_warp(bfloat16* z, const bfloat16* x, const bfloat16* q, Extents e) {
    CU_SHARED(x_vectors, Vector<bfloat16, 8>[tile * warp_pitch / 8]);  // aligned for ldmatrix
    CU_SHARED(q_vectors, Vector<bfloat16, 8>[tile * warp_pitch / 8]);
    bfloat16 *const x_rows = &x_vectors[0][0], *const q_rows = &q_vectors[0][0];
    const int first_row = static_cast<int>(blockIdx.y) * tile,
              first_output = static_cast<int>(blockIdx.x) * tile;
    const int row = warp_index() / 2 * warp_tile, column = warp_index() % 2 * warp_tile;
    float sum[2][4][4] = {};
    for (int k = 0; k < e.inputs; k += warp_slice) {
        copy_tile<width>(x_rows, x, first_row, e.rows, k, e.inputs);
        copy_tile<width>(q_rows, q, first_output, e.outputs, k, e.inputs);
        block_sync();
        multiply_slice(sum, x_rows + row * warp_pitch, q_rows + column * warp_pitch);
        block_sync();
    }
    const int g = lane_index() / 4, t = lane_index() % 4;
    CU_UNROLL
    for (int i = 0; i < 2; ++i) {
        CU_UNROLL
        for (int j = 0; j < 4; ++j) {
            CU_UNROLL
            for (int part = 0; part < 4; ++part) {
                const int m = first_row + row + 16 * i + g + part / 2 * 8;
                const int n = first_output + column + 8 * j + 2 * t + part % 2;
                if (m < e.rows && n < e.outputs)
                    store(z + int64_t{m} * e.outputs + n, static_cast<bfloat16>(sum[i][j][part]));
            }
        }
    }
}

// ---- the program

class Matmul final : public MatmulProblem {
  public:
    Matmul(CudaBackend& backend, const Sizes& sizes) : MatmulProblem(backend, sizes) {
#if defined(TRAIN_QAT_CUBLASLT)
        cublaslt_ = make_dense_matmul(backend.device());
#endif
    }

    std::vector<Operation> operations() override {
        std::vector<Operation> result;
        for (const MatmulForm form : {MatmulForm::nt, MatmulForm::nn, MatmulForm::tn}) {
            Operation& operation = result.emplace_back(this->operation(form));
            if (form == MatmulForm::nt) operation.variants = naive();
            operation.variants.push_back({"matmul_bfloat16.cu", [this, form, f = factors(form)] {
                                              own_matmul(stream(), form, f.out, f.a, f.b, false);
                                          }});
            if (cublaslt_ != nullptr) operation.variants.push_back(variant(form, *cublaslt_));
        }
        return result;
    }

  private:
    std::vector<Variant> naive() {
        bfloat16* z = z_.as<bfloat16>();
        const bfloat16 *x = x_.tensor().as<bfloat16>(), *q = q_.tensor().as<bfloat16>();
        const Extents e{static_cast<int>(M_), static_cast<int>(N_), static_cast<int>(K_)};
        const dim3 tiles(blocks_for(N_, tile), blocks_for(M_, tile));
        return {{"one thread per output",
                 [=, this] {
                     constexpr int threads = 256;
                     CU_LAUNCH(one_thread_per_output, blocks_for(M_ * N_, threads), threads, 0, stream(), z,
                               x, q, e);
                 }},
                {"a tile per block, float32",
                 [=, this] { CU_LAUNCH(tile_per_block, tiles, tile_threads, 0, stream(), z, x, q, e); }},
                {"a tile per warp, tensor cores", [=, this] {
                     if (vector_aligned<8>(x, K_) && vector_aligned<8>(q, K_))
                         CU_LAUNCH(tile_per_warp<8>, tiles, warp_threads, 0, stream(), z, x, q, e);
                     else
                         CU_LAUNCH(tile_per_warp<1>, tiles, warp_threads, 0, stream(), z, x, q, e);
                 }}};
    }

    std::unique_ptr<DenseMatmul> cublaslt_;  // null: not built with it
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"matmul",
         "Matmuls of a linear layer in bfloat16, forward and gradients.",
         {{"rows", 8192, {67, 1, 128}}, {"outputs", 4096, {97, 3, 72}}, {"inputs", 1024, {41, 5, 64}}},
         [](CudaBackend& backend, const Sizes& sizes) { return std::make_unique<Matmul>(backend, sizes); }},
        argc, argv);
}
