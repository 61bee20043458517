// RMSNorm of the residual stream with the addition before it (kernels/operations.h):
//     r    = residual_in + column_scale ∘ branch
//     rstd = 1 / sqrt(mean(r²) + epsilon)
//     y    = r * rstd * weight
//
//   forward
//     1 one thread per row           neighbouring threads are a row apart: a load takes 32 cache lines
//     2 one warp per row             neighbouring threads read neighbouring numbers
//     3 one block per row, vectors   16 bytes per access, and enough threads for a long row
//     4 rmsnorm.cu                   a row is read once and kept in shared memory between the passes
//     5 one warp per row, registers  a lane has its numbers of the whole row in registers: no barrier, and all of a
//                                    row's loads go out together (rows of up to 2048 numbers)
//     6 one vector per thread        a thread has 4 columns of 16 rows in registers: the next row's loads go out before
//                                    the block's only meeting (rows of up to 2048 numbers)
//   backward
//     7 rmsnorm.cu
//     8 one vector per thread        as 6, with dweight's part in registers, and four times the blocks to sum the parts
//
// A few operations per number: the limit is the memory's. The second pass of 1 to 3 reads again what was
// just written.
//
// Where 4 measured 3,373 GB/s and 3 3,959 (16,384 rows of 2048, H200), nvcc had torn 4's and 7's vector stores into one
// of 2 or 4 bytes for each number and had left 3's whole; store_vector is one instruction since, no card has timed 4
// and 7 again. Bytes of a number: forward 12, backward 16 and, of 1024 tiles of 32 rows, 0.25 for dweight's parts.
// Under way on a multiprocessor, of the 15 KB that 25 bytes/ns at 600 ns need, with C 768: 4 up to 46 KB and nothing
// at its two meetings a row; 5 4.6 KB a warp, of some 30; 6 the same as 4, also at its meeting; 7 54 KB, 8 the same.
#include <algorithm>

#include "dev/cuda/bench.h"
#include "dev/cuda/rmsnorm_in_registers.cuh"

namespace train_qat::CU_BACKEND {

namespace {

// The two passes over one row by threads that begin at column `first` and go on by `step`; they have met in
// `sum_over` between the passes.
template <int width, typename Sum>
CU_DEVICE void normalize_row(const Forward& p, int64_t row, int first, int step, Sum&& sum_over) {
    const int64_t offset = row * p.columns;
    float squares = 0;
    for (int c = first; c < p.columns; c += step) {
        Vector<float, width> r = load_vector<width>(p.residual_in + offset + c);
        const Vector<bfloat16, width> branch = load_vector<width>(p.branch + offset + c);
        const Vector<float, width> scale = load_vector<width>(p.column_scale + c);
        CU_UNROLL
        for (int j = 0; j < width; ++j) {
            r[j] += scale[j] * static_cast<float>(branch[j]);
            squares += r[j] * r[j];
        }
        store_vector<width>(p.residual_out + offset + c, r);
    }
    const float rstd = rstd_of(sum_over(squares), p.columns);
    if (first == 0) store(p.rstd + row, rstd);
    for (int c = first; c < p.columns; c += step) {
        const Vector<float, width> r = load_vector<width>(p.residual_out + offset + c);
        const Vector<float, width> weight = load_vector<width>(p.weight + c);
        Vector<bfloat16, width> y;
        CU_UNROLL
        for (int j = 0; j < width; ++j) y[j] = static_cast<bfloat16>(r[j] * rstd * weight[j]);
        store_vector<width>(p.y + offset + c, y);
    }
}

__global__ void thread_per_row(Forward p) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row < p.rows) normalize_row<1>(p, row, 0, 1, [](float squares) { return squares; });
}

__global__ void warp_per_row(Forward p) {
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    if (row < p.rows)
        normalize_row<1>(p, row, lane_index(), 32, [](float squares) { return warp_sum(squares); });
}

constexpr int block_threads = 256;

template <int width>
__global__ void __launch_bounds__(block_threads) block_per_row(Forward p) {
    CU_SHARED(scratch, float[block_threads / 32]);
    normalize_row<width>(p, blockIdx.x, static_cast<int>(threadIdx.x) * width, block_threads * width,
                         [&](float squares) { return block_sum<block_threads>(squares, &scratch[0]); });
}

// ---- the program

class RMSNorm final : public Problem {
  public:
    RMSNorm(CudaBackend& backend, const Sizes& sizes)
        : Problem(backend),
          M_(sizes.at("rows")),
          C_(sizes.at("columns")),
          residual_in_(normals(DType::float32, {M_, C_})),
          branch_(normals(DType::bfloat16, {M_, C_})),
          column_scale_(positives(DType::float32, {C_})),
          weight_(normals(DType::float32, {C_})),
          rstd_in_(positives(DType::float32, {M_})),
          dy_(normals(DType::bfloat16, {M_, C_})),
          residual_out_(output(DType::float32, {M_, C_})),
          y_(output(DType::bfloat16, {M_, C_})),
          rstd_(output(DType::float32, {M_})),
          d_residual_(normals(DType::float32, {M_, C_})),
          dz_(output(DType::bfloat16, {M_, C_})),
          dweight_(output(DType::float32, {C_})),
          workspace_(memory(backend.rmsnorm_backward_workspace(M_, C_))) {}

    std::vector<Operation> operations() override {
        const auto bytes = [](std::initializer_list<Tensor> tensors) {
            int64_t sum = 0;
            for (const Tensor& tensor : tensors) sum += tensor.bytes();
            return static_cast<double>(sum);
        };
        const Tensor residual_in = residual_in_.tensor(), d_residual = d_residual_.tensor();
        Operation forward{
            .name = "forward",
            .bytes = bytes({residual_in, branch_.tensor(), residual_out_, y_}),
            .reset =
                [this] {
                    for (const Tensor& out : {residual_out_, y_, rstd_}) poison(out);
                },
            .compare = [this] { return compare_forward(); },
            .variants = forward_variants(),
        };
        Operation backward{
            .name = "backward",
            .bytes = bytes({dy_.tensor(), residual_in, dz_, d_residual, d_residual}),  // read and written
            .reset =
                [this] {
                    for (const Tensor& out : {dz_, dweight_}) poison(out);
                    upload(d_residual_);
                },
            .compare = [this] { return compare_backward(); },
            .variants = {{"rmsnorm.cu", [this] { backward_of_backend(); }},
                         {"one vector per thread", [this] { backward_per_vector(); }}},
        };
        return {forward, backward};
    }

  private:
    std::vector<Variant> forward_variants() {
        const Forward p{residual_out_.as<float>(),
                        y_.as<bfloat16>(),
                        rstd_.as<float>(),
                        residual_in_.tensor().as<float>(),
                        branch_.tensor().as<bfloat16>(),
                        column_scale_.tensor().as<float>(),
                        weight_.tensor().as<float>(),
                        static_cast<int>(M_),
                        static_cast<int>(C_)};
        const auto rows = static_cast<unsigned>(M_);
        return {{"one thread per row",
                 [=, this] {
                     constexpr int threads = 32;  // few rows shall still reach many multiprocessors
                     CU_LAUNCH(thread_per_row, blocks_for(M_, threads), threads, 0, stream(), p);
                 }},
                {"one warp per row",
                 [=, this] {
                     constexpr int threads = 256;
                     CU_LAUNCH(warp_per_row, blocks_for(M_, threads / 32), threads, 0, stream(), p);
                 }},
                {"one block per row, vectors",
                 [=, this] {
                     if (rows_aligned<4>(C_, p.residual_in, p.branch, p.residual_out, p.y))
                         CU_LAUNCH(block_per_row<4>, rows, block_threads, 0, stream(), p);
                     else
                         CU_LAUNCH(block_per_row<1>, rows, block_threads, 0, stream(), p);
                 }},
                {"rmsnorm.cu", [this] { forward_of_backend(); }},
                {"one warp per row, registers",
                 [=, this] {
                     if (!fits_registers()) return forward_of_backend();
                     const auto launch = [&]<int vectors>() {
                         CU_LAUNCH(warp_in_registers<vectors>, blocks_for(M_, row_warps), row_warps * 32, 0,
                                   stream(), p);
                     };
                     if (C_ <= 768)
                         launch.template operator()<6>();
                     else if (C_ <= 1024)
                         launch.template operator()<8>();
                     else
                         launch.template operator()<16>();
                 }},
                {"one vector per thread", [=, this] {
                     if (!fits_registers()) return forward_of_backend();
                     CU_LAUNCH(thread_per_vector, blocks_for(M_, forward_tile), row_threads(), 0, stream(),
                               p);
                 }}};
    }

    // Whole vectors, of which each thread of a block has one; other rows are left to rmsnorm.cu.
    bool fits_registers() const { return C_ % 4 == 0 && C_ <= 4 * most_row_threads; }
    unsigned row_threads() const { return balanced_threads(C_ / 4, most_row_threads); }

    void forward_of_backend() {
        backend().residual_rmsnorm_forward({.residual_out = residual_out_,
                                            .y = y_,
                                            .rstd = rstd_,
                                            .residual_in = residual_in_.tensor(),
                                            .branch = branch_.tensor(),
                                            .column_scale = column_scale_.tensor(),
                                            .weight = weight_.tensor(),
                                            .epsilon = epsilon});
    }

    void backward_per_vector() {
        if (!fits_registers()) return backward_of_backend();
        // Tiles as in rmsnorm.cu, whose workspace holds their parts.
        const auto tile_rows = static_cast<int>(std::max<int64_t>(16, (M_ + 1023) / 1024));
        const unsigned tiles = blocks_for(M_, tile_rows);
        const Backward p{d_residual_.tensor().as<float>(),
                         static_cast<float*>(workspace_),
                         dz_.as<bfloat16>(),
                         dy_.tensor().as<bfloat16>(),
                         residual_in_.tensor().as<float>(),
                         rstd_in_.tensor().as<float>(),
                         weight_.tensor().as<float>(),
                         column_scale_.tensor().as<float>(),
                         static_cast<int>(M_),
                         static_cast<int>(C_),
                         tile_rows};
        CU_LAUNCH(gradient_per_vector, tiles, row_threads(), 0, stream(), p);
        CU_LAUNCH(sum_few_columns, blocks_for(C_, summed_columns), summing_warps * 32, 0, stream(),
                  dweight_.as<float>(), p.partial, static_cast<int>(tiles), p.columns);
    }

    void backward_of_backend() {
        backend().rmsnorm_backward({.d_residual = d_residual_.tensor(),
                                    .dweight = dweight_,
                                    .dz = dz_,
                                    .dy = dy_.tensor(),
                                    .residual = residual_in_.tensor(),
                                    .rstd = rstd_in_.tensor(),
                                    .weight = weight_.tensor(),
                                    .column_scale = column_scale_.tensor(),
                                    .accumulate_residual = true,
                                    .accumulate_weight = false,
                                    .workspace = workspace_});
    }

    Comparison compare_forward() {
        Comparison result;
        const double slack = float32_sum(C_);
        for (int64_t m : sample(M_)) {
            const Array branch = reference::scale_columns(branch_.rows(m, 1), column_scale_.all());
            const reference::RMSNormForward expected =
                reference::rmsnorm_forward(residual_in_.rows(m, 1), branch, weight_.all(), epsilon, 1, C_);
            result.add(read(y_.rows(m, 1)), expected.y, DType::bfloat16, slack);
            result.add(read(rstd_.rows(m, 1))[0], expected.rstd[0], expected.rstd[0], DType::float32, slack);
            const Array residual = read(residual_out_.rows(m, 1));
            for (int64_t c = 0; c < C_; ++c)
                result.add(residual[c], expected.residual[c],
                           std::abs(residual_in_[m * C_ + c]) + std::abs(branch[c]), DType::float32, 0x1p-23);
        }
        return result;
    }

    // Rows one by one; dweight, which sums over all of them, where there are few.
    Comparison compare_backward() {
        Comparison result;
        const double slack = float32_sum(C_);
        const std::vector<int64_t> rows = sample(M_);
        for (int64_t m : rows) {
            const reference::RMSNormBackward expected = oracle(m, 1, d_residual_.rows(m, 1));
            result.add(read(d_residual_.tensor().rows(m, 1)), expected.d_residual, DType::float32, slack);
            result.add(read(dz_.rows(m, 1)), expected.dz, DType::bfloat16, slack);
        }
        if (std::ssize(rows) == M_)
            result.add(read(dweight_), oracle(0, M_, d_residual_.all()).dweight, DType::float32,
                       float32_sum(M_));
        return result;
    }
    reference::RMSNormBackward oracle(int64_t first, int64_t count, const Array& d_residual) const {
        return reference::rmsnorm_backward(d_residual, {}, dy_.rows(first, count),
                                           residual_in_.rows(first, count), rstd_in_.rows(first, count),
                                           weight_.all(), column_scale_.all(), count, C_);
    }

    int64_t M_, C_;
    Numbers residual_in_, branch_, column_scale_, weight_, rstd_in_, dy_;
    Tensor residual_out_, y_, rstd_;
    Numbers d_residual_;
    Tensor dz_, dweight_;
    void* workspace_;
};

}  // namespace

}  // namespace train_qat::CU_BACKEND

int main(int argc, char** argv) {
    using namespace train_qat::CU_BACKEND;
    return run_benchmark(
        {"rmsnorm",
         "RMSNorm of the residual stream, bfloat16 in and out.",
         {{"rows", 16384, {67, 1, 40, 35}}, {"columns", 2048, {77, 5, 1160, 772}}},
         [](CudaBackend& backend, const Sizes& sizes) { return std::make_unique<RMSNorm>(backend, sizes); }},
        argc, argv);
}
